"""What breaks inside: an answer for those who wait, a word to the operator, and a server that knows it."""

import pytest
import torch
from serving import engine, limits, noisy, png, serving, until
from test_serve_engine import Drawn, Watching

from imagen.serve.errors import INTERNAL
from imagen.serve.openai_api import Images


def broken(error: BaseException):
    def check(*_):
        raise error

    return check


@pytest.mark.parametrize("error", [ValueError("of theirs"), TimeoutError("of theirs")])
def test_a_check_that_raises_refuses_with_500_and_is_logged(error, capfd):
    with serving(check_prompt=broken(error)) as server, server.client() as http:
        response = http.post("/v1/images/generations", json={"prompt": "cat"})
        assert response.status_code == 500 and response.json()["error"]["message"] == INTERNAL
        assert response.headers["x-content-type-options"] == "nosniff"
        assert "of theirs" in capfd.readouterr().err
        counted = {"method": "POST", "route": "/v1/images/generations", "status": "500"}
        until(lambda: server.service.metrics.registry.get_sample_value("imagen_http_requests_total", counted) == 1)
        assert http.post("/v1/images/generations", json={"prompt": ""}).status_code == 200
    with serving(check_picture=broken(error)) as server, server.client() as http:
        response = http.post("/v1/images/generations", json={"prompt": "cat"})
        assert response.status_code == 500 and response.json()["error"]["message"] == INTERNAL
        assert "of theirs" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("def check_prompt(:", "SyntaxError"),
        ("1 / 0", "ZeroDivisionError"),
        ("async def check_prompt(text): return None", "check_prompt is async; it must be a plain function"),
    ],
)
def test_modules_of_checks_that_cannot_be(code, said, tmp_path, monkeypatch, mistake):
    (tmp_path / "their_checks.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(__import__("sys").modules, "their_checks", raising=False)
    assert said in mistake("serve", "emoji", "--filter", "their_checks")


def test_an_error_between_pictures_ends_those_and_no_others(capfd):
    with serving() as server, server.client() as http:
        one = server.service.engines[0]
        turn = one._turn

        def once() -> None:
            one._turn = turn
            raise RuntimeError("a bug in the engine")

        one._turn = once
        assert http.post("/v1/images/generations", json={"prompt": "cat"}).status_code == 500
        assert "a bug in the engine" in capfd.readouterr().err
        assert http.get("/healthz").status_code == 200
        assert http.post("/v1/images/generations", json={"prompt": "cat"}).status_code == 200


def test_an_engine_that_is_lost_is_said(capfd):
    with serving(limits=limits(active=1)) as server, server.client() as http:
        one = server.service.engines[0]
        with server.hold():
            addresses = [http.post("/api/generate", json={"prompt": "cat"}).headers["location"] for _ in range(3)]
            one._wait = broken(SystemExit("lost"))  # by what is no Exception
        until(lambda: not one._thread.is_alive())
        until(lambda: all(http.get(address).json()["state"] == "failed" for address in addresses))
        assert "lost" in capfd.readouterr().err and one.load() == (0, 0)
        assert http.get("/healthz").status_code == http.get("/readyz").status_code == 503
        response = http.post("/v1/images/generations", json={"prompt": "cat"})
        assert response.status_code == 503 and "started again" in response.json()["error"]["message"]


def test_another_engine_goes_on():
    with serving(engines=2) as server, server.client() as http:
        server.service.engines[0].failure = RuntimeError("lost")
        made = http.post("/v1/images/generations", json={"prompt": "cat", "n": 4})
        assert made.status_code == 200 and server.service.engines[1]._arrived == 4
        assert http.get("/healthz").status_code == 503, "it should be started again all the same"


def test_an_error_of_the_gpu_itself_is_one_of_the_engine():
    """Every later call fails with it, whoever asks."""
    made = engine()
    Watching(made, broken(torch.AcceleratorError("illegal address")))
    drawn = Drawn(made)
    made.submit([drawn.work])
    assert isinstance(drawn.wait(), torch.AcceleratorError) and made.failure is drawn.result
    made.stop()


def test_partial_images_are_freed_with_their_stream():
    with serving() as server, server.client() as http:
        body = {"prompt": "cat", "stream": True, "partial_images": 3}
        assert http.post("/v1/images/generations", json=body).text.count("event: image_generation.partial_image") == 3
        files = {"image": png(noisy())}
        http.post("/v1/images/edits", files=files, data={"prompt": "x", "stream": "true", "partial_images": "2"})
        jobs = list(server.service.jobs._jobs.values())
        assert len(jobs) == 2
        until(lambda: not any(picture.partials for job in jobs for picture in job.pictures))


def test_openai_fields():
    assert Images(prompt="x", output_compression=0).asked().quality == 1
    assert Images(prompt="x", output_compression=80).asked().quality == 80
    assert Images(prompt="x").asked().quality is None
    with serving() as server, server.client() as http:
        error = http.post("/v1/images/generations", json={"prompt": "x", "model": "dall-e-3"}).json()["error"]
        assert (error["param"], error["code"]) == ("model", "model_not_found")
