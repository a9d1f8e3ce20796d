"""Test internal failures: clients get an error response, the log has the traceback, and health checks fail."""

import socket

import pytest
import torch
from serving import BatcherSpy, RecordedTask, change_limits, encode_png, noise_image, serving, start_engine, wait_until

from imagen.serve.errors import INTERNAL
from imagen.serve.openai_api import Images


def raising_check(error: BaseException):
    def check(*_):
        raise error

    return check


@pytest.mark.parametrize("error", [ValueError("of theirs"), TimeoutError("of theirs")])
def test_a_check_that_raises_is_500_and_logged(error, capfd):
    with serving(check_prompt=raising_check(error)) as server, server.client() as http:
        response = http.post("/v1/images/generations", json={"prompt": "cat"})
        assert response.status_code == 500 and response.json()["error"]["message"] == INTERNAL
        assert response.headers["x-content-type-options"] == "nosniff"
        assert "of theirs" in capfd.readouterr().err
        counted = {"method": "POST", "route": "/v1/images/generations", "status": "500"}
        wait_until(lambda: server.service.metrics.registry.get_sample_value("imagen_http_requests_total", counted) == 1)
        assert http.post("/v1/images/generations", json={"prompt": ""}).status_code == 200
    with serving(check_picture=raising_check(error)) as server, server.client() as http:
        response = http.post("/v1/images/generations", json={"prompt": "cat"})
        assert response.status_code == 500 and response.json()["error"]["message"] == INTERNAL
        assert "of theirs" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("def check_prompt(:", "SyntaxError"),
        ("1 / 0", "ZeroDivisionError"),
        ("async def check_prompt(text): return None", "check_prompt is async; it must be a plain function"),
    ],
)
def test_invalid_check_modules_are_rejected(code, expected, tmp_path, monkeypatch, error_of):
    (tmp_path / "their_checks.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(__import__("sys").modules, "their_checks", raising=False)
    assert expected in error_of("serve", "emoji", "--filter", "their_checks")


def test_an_engine_error_ends_only_the_active_images(capfd):
    with serving() as server, server.client() as http:
        one = server.service.engines[0]
        run_batch = one.run_batch

        def fail_once() -> None:
            one.run_batch = run_batch
            raise RuntimeError("a bug in the engine")

        one.run_batch = fail_once
        assert http.post("/v1/images/generations", json={"prompt": "cat"}).status_code == 500
        assert "a bug in the engine" in capfd.readouterr().err
        assert http.get("/healthz").status_code == 200
        assert http.post("/v1/images/generations", json={"prompt": "cat"}).status_code == 200


def test_a_failed_engine_is_reported(capfd):
    with serving(limits=change_limits(active=1)) as server, server.client() as http:
        one = server.service.engines[0]
        with server.pause_engine():
            addresses = [http.post("/api/generate", json={"prompt": "cat"}).headers["location"] for _ in range(3)]
            one.wait_for_work = raising_check(SystemExit("lost"))  # not a subclass of Exception
        wait_until(lambda: not one.thread.is_alive())
        wait_until(lambda: all(http.get(address).json()["state"] == "failed" for address in addresses))
        assert "lost" in capfd.readouterr().err and one.load() == (0, 0)
        assert http.get("/healthz").status_code == http.get("/readyz").status_code == 503
        response = http.post("/v1/images/generations", json={"prompt": "cat"})
        assert response.status_code == 503 and "has to be restarted" in response.json()["error"]["message"]


def test_other_engines_continue():
    with serving(engines=2) as server, server.client() as http:
        server.service.engines[0].failure = RuntimeError("lost")
        made = http.post("/v1/images/generations", json={"prompt": "cat", "n": 4})
        assert made.status_code == 200 and server.service.engines[1].scheduler.arrived == 4
        assert http.get("/healthz").status_code == 503, "the server should still be restarted"


def test_an_accelerator_error_fails_the_engine():
    """After such an error, every later CUDA call of the process fails."""
    made = start_engine()
    BatcherSpy(made, raising_check(torch.AcceleratorError("illegal address")))
    drawn = RecordedTask(made)
    made.submit([drawn.task])
    assert isinstance(drawn.wait(), torch.AcceleratorError) and made.failure is drawn.result
    made.stop()


def test_partial_images_are_freed_with_their_stream():
    with serving() as server, server.client() as http:
        body = {"prompt": "cat", "stream": True, "partial_images": 3}
        assert http.post("/v1/images/generations", json=body).text.count("event: image_generation.partial_image") == 3
        files = {"image": encode_png(noise_image())}
        http.post("/v1/images/edits", files=files, data={"prompt": "x", "stream": "true", "partial_images": "2"})
        jobs = list(server.service.jobs.jobs.values())
        assert len(jobs) == 2
        wait_until(lambda: not any(picture.partials for job in jobs for picture in job.pictures))


def test_openai_fields_are_converted():
    assert Images(prompt="x", output_compression=0).image_request().quality == 1
    assert Images(prompt="x", output_compression=80).image_request().quality == 80
    assert Images(prompt="x").image_request().quality is None
    with serving() as server, server.client() as http:
        error = http.post("/v1/images/generations", json={"prompt": "x", "model": "dall-e-3"}).json()["error"]
        assert (error["param"], error["code"]) == ("model", "model_not_found")


def test_a_client_that_disconnects_while_sending_is_not_a_failure(capfd):
    with serving() as server, server.client() as http:
        port = int(server.url.rpartition(":")[2])
        with socket.create_connection(("127.0.0.1", port), 10) as connection:
            head = "POST /api/generate HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            connection.sendall(f'{head}Content-Length: 100\r\n\r\n{{"prompt": '.encode())
        wait_until(lambda: 'route="/api/generate",status="499"' in http.get("/metrics").text)
        assert http.get("/healthz").status_code == 200
    assert "Traceback" not in capfd.readouterr().err
