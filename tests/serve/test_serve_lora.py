"""Test requests with LoRA: each image gets its own LoRA, even if others are sampled at the same time."""

import threading
from pathlib import Path
from typing import Any

import pytest
from cascades import max_difference
from lora import lora_file
from PIL import Image
from serving import decode_image, serving, tiny_cascade, wait_until

from imagen.pictures import read_metadata

CHOICES: list[dict[str, float] | None] = [None, {"ink": 0.7}, {"ink": -0.5}, {"fine": 1.0}, {"ink": 0.7, "fine": 1.0}]


def cascade_with_loras(folder: Path) -> Any:
    """Return a cascade with one LoRA per stage."""
    model = tiny_cascade()
    for number, name in enumerate(("ink", "fine")):
        model.load_lora(lora_file(folder / f"{name}.safetensors", model, number, seed=number))
    return model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("lora")


@pytest.fixture(scope="module")
def running(folder: Path) -> Any:
    with serving(cascade_with_loras(folder)) as server:
        yield server


def test_concurrent_requests_can_have_different_loras(running: Any, folder: Path) -> None:
    found: dict[int, tuple[Image.Image, dict[str, Any] | None]] = {}

    def request_one(number: int) -> None:
        with running.client() as client:
            body = {"prompt": "cat", "seed": number, "lora": CHOICES[number % len(CHOICES)]}
            job = client.post("/api/generate", json=body).json()
            wait_until(lambda: client.get(f"/api/jobs/{job['id']}").json()["state"] == "done")
            (made,) = client.get(f"/api/jobs/{job['id']}").json()["pictures"]
            data = client.get(made["url"]).content
            (folder / f"{number}.png").write_bytes(data)
            found[number] = decode_image(data), read_metadata(folder / f"{number}.png")

    with running.pause_engine():
        threads = [threading.Thread(target=request_one, args=(number,)) for number in range(10)]
        for thread in threads:
            thread.start()
        wait_until(lambda: len(running.service.jobs.unfinished()) == 10)
    for thread in threads:
        thread.join(60)
    model = cascade_with_loras(folder)
    options: dict[str, Any] = {"progress": False, "precision": "fp32", "device": "cpu"}
    for number in range(10):
        lora = CHOICES[number % len(CHOICES)]
        expected = model.sample("cat", seeds=number, lora=lora, **options)[0]
        image, metadata = found[number]
        assert max_difference(image, expected) <= 1
        names = [each["name"] for each in (metadata or {}).get("lora", [])]
        assert names == list(lora or {})
        if lora:
            assert max_difference(expected, model.sample("cat", seeds=number, **options)[0]) > 3


def test_lora_names_are_listed_and_invalid_ones_rejected(running: Any) -> None:
    with running.client() as client:
        assert client.get("/api/about").json()["lora"] == ["ink", "fine"]
        for lora, message in (
            ({"inc": 1}, "did you mean 'ink'"),
            ({"ink": 1e9}, "at most 100"),
            ({"ink": "x"}, "lora"),
            ({"x" * 201: 1}, "at most 200 characters"),
        ):
            response = client.post("/api/generate", json={"prompt": "cat", "lora": lora})
            assert response.status_code == 422 and message in response.text
