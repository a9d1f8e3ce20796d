"""Run the command as a process: start it, stop it, kill it, and misuse it."""

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
import pytest
from cascades import stage
from serving import LIMITS

from imagen.cascade import Cascade
from imagen.precision import autocast_dtype, precision_name
from imagen.serve.metrics import Metrics
from imagen.serve.running import STOPPED, start_engines

ROOT = Path(__file__).parents[2]
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("serve") / "tiny"
    Cascade([stage(16, text=False), stage(32, 16, text=False)]).save(folder)
    return folder


class ServerProcess:
    def __init__(self, *arguments: object):
        words = [sys.executable, "-m", "imagen", "serve", *map(str, arguments), "--port", str(free_port())]
        self.process = subprocess.Popen(words, env=ENVIRONMENT, stdout=-1, stderr=-1, text=True, cwd=ROOT)
        line = self.process.stdout.readline()
        found = re.search(r"at (http://[^/]+)/", line)
        assert found, (line, self.process.communicate()[1])
        self.client = httpx.Client(base_url=found[1], timeout=60, trust_env=False)
        end = time.monotonic() + 60
        while time.monotonic() < end:
            try:
                if self.client.get("/readyz").status_code == 200:
                    return
            except httpx.TransportError:
                time.sleep(0.05)
        raise AssertionError("the server did not become ready within 60 s")

    def __enter__(self) -> "ServerProcess":
        return self

    def __exit__(self, *_: object) -> None:
        self.client.close()
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def start_requests(
    process: ServerProcess, count: int, **body: object
) -> tuple[list[threading.Thread], dict[int, httpx.Response]]:
    """Start `count` requests; return their threads, and a dict that receives the responses."""
    answers: dict[int, httpx.Response] = {}

    def request_one(seed: int) -> None:
        with contextlib.suppress(httpx.TransportError):  # the server may be killed
            answers[seed] = process.client.post("/v1/images/generations", json={"prompt": "", "seed": seed, **body})

    threads = [threading.Thread(target=request_one, args=(seed,)) for seed in range(count)]
    for thread in threads:
        thread.start()
    end = time.monotonic() + 30
    while sum(map(float, re.findall(r"^imagen_pictures_(?:waiting|active) (.*)", metrics(process), re.M))) < count:
        assert time.monotonic() < end
    return threads, answers


def metrics(process: ServerProcess) -> str:
    return process.client.get("/metrics").text


def test_sigterm_finishes_accepted_requests(saved):
    with ServerProcess(saved) as process:
        threads, answers = start_requests(process, 6, steps=100)
        process.process.send_signal(signal.SIGTERM)
        refused = process.client.post("/v1/images/generations", json={"prompt": ""})
        assert refused.status_code == 503 and refused.headers["retry-after"]
        assert process.client.get("/readyz").status_code == 503
        for thread in threads:
            thread.join(60)
        assert {answer.status_code for answer in answers.values()} == {200} and len(answers) == 6
        _, err = process.process.communicate(timeout=30)
        assert process.process.returncode == 0 and "Traceback" not in err, err


def test_sigterm_reports_unfinished_requests(saved):
    with ServerProcess(saved, "--drain", "0.2", "--max-steps", "5000") as process:
        threads, answers = start_requests(process, 20, steps=5000)
        process.process.send_signal(signal.SIGTERM)
        for thread in threads:
            thread.join(60)
        assert {answer.status_code for answer in answers.values()} == {503} and len(answers) == 20
        assert answers[0].json()["error"]["message"] == STOPPED
        process.process.wait(30)
        assert process.process.returncode == 0


def test_a_second_signal_ends_the_server_at_once(saved):
    with ServerProcess(saved, "--max-steps", "5000") as process:
        start_requests(process, 1, steps=5000)
        for _ in range(2):
            process.process.send_signal(signal.SIGTERM)
            time.sleep(0.5)
        _, err = process.process.communicate(timeout=30)
        assert process.process.returncode == 130 and "Traceback" not in err and "terminate" not in err, err


def test_the_server_restarts_after_a_kill_and_ctrl_c_stops_it(saved):
    before = {path: path.read_bytes() for path in saved.rglob("*") if path.is_file()}
    with ServerProcess(saved) as process:
        start_requests(process, 4, steps=200)
        process.process.kill()
    with ServerProcess(saved) as process:
        assert process.client.post("/v1/images/generations", json={"prompt": ""}).status_code == 200
        assert {path: path.read_bytes() for path in saved.rglob("*") if path.is_file()} == before
        process.process.send_signal(signal.SIGINT)
        assert process.process.wait(30) == 0


def test_user_errors_are_one_line(saved, error_of, tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert f"cannot listen on 127.0.0.1:{port}" in error_of("serve", saved, "--port", port)
    assert "nothing" in error_of("serve", tmp_path / "nothing", "--port", free_port())
    assert "65,535" in error_of("serve", saved, "--port", 70000)
    assert "does not exist" in error_of("serve", saved, "--keys", tmp_path / "keys")
    assert "--device nonsense" in error_of("serve", saved, "--workers-devices", "cpu,nonsense")
    assert "--proxy-from *" in error_of("serve", saved, "--proxy-from", "*")
    assert "--rate is -1" in error_of("serve", saved, "--rate", "-1")
    assert "must be a module" in error_of("serve", saved, "--filter", "no.such.module")
    assert "neither a function" in error_of("serve", saved, "--filter", "this")


@pytest.mark.parametrize("precision", ["auto", "bf16"])
def test_each_engine_has_the_precision_of_its_own_device(saved, monkeypatch, precision):
    """On a machine with a GPU, which is the default device."""
    monkeypatch.setattr("imagen.cascade.cascade.default_device", lambda: "cuda")
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda **_: False)  # the GPU computes in fp16, no CPU does
    (engine,) = start_engines(saved, LIMITS, Metrics(), devices=["cpu"], precision=precision)
    engine.stop()
    assert engine.precision == precision_name(autocast_dtype("cpu", precision))
