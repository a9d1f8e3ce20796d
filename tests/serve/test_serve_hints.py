"""Test fast sampling through the API, and warnings of words that training never showed."""

import asyncio
import base64
import contextlib
import json
import shlex
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from cascades import QUICK, WordTokenEncoder, max_difference
from serving import VOCABULARY, decode_image, fast_cascade, noise_image, serving, tiny_cascade, wait_until

from imagen.pictures import read_metadata
from imagen.serve import hints
from imagen.serve.hints import Hints
from imagen.text.vocabulary import untrained_words


@pytest.fixture(scope="module", autouse=True)
def patience() -> Iterator[None]:
    """Wait for nearest names as long as it takes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hints, "SECONDS", 60.0)
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fast")


@pytest.fixture(scope="module")
def running(folder: Path) -> Any:
    with serving(fast_cascade(folder)) as server:
        yield server


@pytest.fixture
def http(running: Any) -> Any:
    with running.client() as client:
        yield client


def finished(http: Any, **body: Any) -> dict[str, Any]:
    """Return the job of a request after its end."""
    response = http.post("/api/generate", json=body)
    assert response.status_code == 202, response.text
    address = response.headers["location"]
    wait_until(lambda: http.get(address).json()["state"] == "done")
    return http.get(address).json()


def expected_warning(*prompts: str) -> str | None:
    encoder = WordTokenEncoder()
    return untrained_words(prompts, VOCABULARY, lambda texts: encoder.encode(list(texts)))


# --- fast sampling ---


def test_about_lists_the_fast_settings_of_each_stage(http: Any) -> None:
    base, upper = http.get("/api/about").json()["stages"]
    assert base["fast"] == {"steps": 2, "guidance": 1.0, "sampler": "ddim"}
    assert (base["steps"], base["guidance"]) == (3, 2.0) and upper["fast"] is None


def test_fast_requests_and_others_get_their_own_images(running: Any, http: Any, folder: Path) -> None:
    with running.pause_engine():
        addresses = [
            http.post("/api/generate", json={"prompt": "cat", "seed": 3, "fast": fast}).headers["location"]
            for fast in (True, False)
        ]
    model = fast_cascade(folder)
    for address, fast in zip(addresses, (True, False), strict=True):
        wait_until(lambda address=address: http.get(address).json()["state"] == "done")  # type: ignore[misc]
        (picture,) = http.get(address).json()["pictures"]
        data = http.get(picture["url"]).content
        (expected,) = model.sample("cat", seeds=3, fast=fast, **QUICK)
        assert max_difference(decode_image(data), expected) <= 1
        assert ("--fast" in shlex.split(picture["command"])) == fast
        (folder / "served.png").write_bytes(data)
        metadata = read_metadata(folder / "served.png")
        assert metadata is not None
        assert metadata["stages"][0]["sampling"]["steps"] == (2 if fast else 3)
        assert [each["name"] for each in metadata.get("lora", [])] == (["fast"] if fast else [])


def test_a_cascade_without_fast_settings_refuses_fast() -> None:
    with serving() as server, server.client() as http:
        response = http.post("/api/generate", json={"prompt": "cat", "fast": True})
        assert response.status_code == 422 and "no fast settings" in response.json()["error"]["message"]
        assert [stage["fast"] for stage in http.get("/api/about").json()["stages"]] == [None, None]


# --- unknown words ---


def test_a_job_warns_of_unknown_words_with_the_nearest_names(http: Any) -> None:
    response = http.post("/api/generate", json={"prompt": "a zeppelin and a cat"}).json()
    expected = expected_warning("a zeppelin and a cat")
    assert expected is not None
    assert expected.startswith("never trained on 'zeppelin' (nearest of the names it knows: ")
    assert response["warning"] == expected
    assert http.get(f"/api/jobs/{response['id']}").json()["warning"] == expected
    assert finished(http, prompt="two cats and a dog")["warning"] is None
    assert finished(http, prompt="")["warning"] is None
    many = finished(http, prompt="an owl, a bee, a fox, a cow, an ant")
    assert "'fox' (nearest" in many["warning"] and "and 2 more; the images will probably" in many["warning"]


def test_a_stream_has_one_warning(http: Any) -> None:
    for prompt, count in (("a zeppelin", 1), ("a cat", 0)):
        lines = http.post("/api/generate", json={"prompt": prompt, "n": 2, "stream": True}).text.split("\n")
        events = [json.loads(line[6:]) for line in lines if line.startswith("data: ")]
        found = [event for event in events if event["type"] == "warning"]
        assert [event["warning"] for event in found] == [expected_warning(prompt)] * count
        assert events[-1]["type"] == "end" and events[-1]["state"] == "done"


def test_openai_responses_warn_and_take_fast(http: Any, folder: Path) -> None:
    body = {"prompt": "a zeppelin", "size": "16x16", "seed": 3, "fast": True}
    response = http.post("/v1/images/generations", json=body).json()
    assert response["warning"] == expected_warning("a zeppelin")
    (expected,) = fast_cascade(folder).sample("a zeppelin", seeds=3, fast=True, stages=1, **QUICK)
    assert max_difference(decode_image(base64.b64decode(response["data"][0]["b64_json"])), expected) <= 1
    assert "warning" not in http.post("/v1/images/generations", json={**body, "prompt": "a cat"}).json()
    for prompt, warned in (("a zeppelin", True), ("a cat", False)):
        lines = http.post("/v1/images/generations", json={**body, "prompt": prompt, "stream": True}).text.split("\n")
        event = [json.loads(line[6:]) for line in lines if line.startswith("data: ")][-1]
        assert event["type"] == "image_generation.completed" and ("warning" in event) == warned


def test_upscaling_does_not_warn(http: Any) -> None:
    from serving import encode_png

    files = {"image": encode_png(noise_image(16))}
    assert http.post("/api/upscale", files=files, data={"prompt": "a zeppelin"}).json()["warning"] is None


def test_the_schema_documents_the_responses(http: Any) -> None:
    schema = http.get("/openapi.json").json()
    for path, method, status in (
        ("/api/generate", "post", "202"),
        ("/api/upscale", "post", "202"),
        ("/api/jobs/{id}", "get", "200"),
        ("/api/jobs/{id}", "delete", "200"),
    ):
        content = schema["paths"][path][method]["responses"][status]["content"]["application/json"]
        assert content["schema"] == {"$ref": "#/components/schemas/JobState"}
    parts = schema["components"]["schemas"]
    job = finished(http, prompt="cat")
    assert set(parts["JobState"]["properties"]) == set(job)
    assert set(parts["PictureState"]["properties"]) == set(job["pictures"][0])


# --- the cost ---


def hinting(encoder: Any, prompts: list[str], folder: Path) -> list[str | None]:
    """Return the warnings of prompts that arrive at the same time."""
    model = fast_cascade(folder)
    assert model.texts is not None
    model.texts.encoder = encoder

    async def work() -> list[str | None]:
        made = Hints(model, torch.device("cpu"))
        try:
            return await asyncio.gather(*(made.warning(model.request(prompt, device="cpu")) for prompt in prompts))
        finally:
            made.close()

    return asyncio.run(work())


def test_names_and_phrases_are_encoded_once(folder: Path) -> None:
    encoder = WordTokenEncoder()
    prompts = ["a zeppelin", "a zeppelin", "two zeppelin", "a cat"]
    assert hinting(encoder, prompts, folder)[:2] == [expected_warning("a zeppelin")] * 2
    assert sorted(encoder.seen) == sorted([*VOCABULARY.names, "zeppelin"])


def test_only_the_beginning_of_a_long_phrase_is_encoded(folder: Path) -> None:
    encoder = WordTokenEncoder()
    (warning,) = hinting(encoder, ["owl " * 499], folder)
    assert warning is not None and "nearest" in warning and len(warning) < 300
    assert max(map(len, encoder.seen)) == hints.PHRASE


class StoppedEncoder(WordTokenEncoder):
    """Encodes nothing until it is released."""

    def __init__(self) -> None:
        super().__init__()
        self.released = threading.Event()

    def encode(self, prompts: list[str]) -> list[Any]:
        self.released.wait(60)
        return super().encode(prompts)


def test_a_slow_encoder_only_costs_the_names(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hints, "SECONDS", 0.1)
    encoder = StoppedEncoder()
    try:
        found = hinting(encoder, ["a zeppelin"] * 20, folder)
    finally:
        encoder.released.set()
    assert found == ["never trained on 'zeppelin'; the images will probably show something else"] * 20


class BrokenEncoder(WordTokenEncoder):
    def encode(self, prompts: list[str]) -> list[Any]:
        raise RuntimeError("no memory")


def test_an_encoder_that_fails_only_costs_the_names(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert hinting(BrokenEncoder(), ["a zeppelin"], folder) == [
        "never trained on 'zeppelin'; the images will probably show something else"
    ]
    assert "no memory" in capsys.readouterr().err


class MeetingEncoder(WordTokenEncoder):
    """Records whether two threads were in `encode` at the same time."""

    def __init__(self) -> None:
        super().__init__()
        self.both = threading.Barrier(2)
        self.met = False

    def encode(self, prompts: list[str]) -> list[Any]:
        with contextlib.suppress(threading.BrokenBarrierError):
            self.both.wait(0.2)
            self.met = True
        return super().encode(prompts)


def test_one_thread_at_a_time_uses_the_encoder(folder: Path) -> None:
    texts = fast_cascade(folder).texts
    assert texts is not None
    texts.encoder = encoder = MeetingEncoder()
    cpu = torch.device("cpu")
    threads = [
        threading.Thread(target=texts, args=(["cat"], cpu)),
        threading.Thread(target=texts.without_storing, args=(["dog"], cpu)),
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(encoder.seen) == ["cat", "dog"] and not encoder.met
    assert "cat" in texts and "dog" not in texts


def test_a_cascade_without_a_vocabulary_does_not_warn() -> None:
    with serving(tiny_cascade()) as server, server.client() as http:
        assert http.post("/api/generate", json={"prompt": "a zeppelin"}).json()["warning"] is None
