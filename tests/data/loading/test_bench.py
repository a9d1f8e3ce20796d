"""Test `imagen data bench`."""

import io
import json

import numpy as np
import pytest
import torch
from PIL import Image

from imagen.data.embed.encode import encode_shards
from imagen.data.loading.bench import PARTS
from imagen.data.shards.writer import ShardWriter


class FakeEncoder:
    class config:
        encoder, revision, width, max_tokens, unconditional = "tests/fake", "main", 8, 16, "zeros"

    def lengths(self, captions):
        return [3 for _ in captions]

    def untruncated_lengths(self, captions):
        return self.lengths(captions)

    def encode(self, captions):
        return [torch.ones(3, 8) for _ in captions]


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """Write 40 JPEGs of 64 pixels, one of them broken, with embeddings; return the folder and the bytes of a JPEG."""
    folder = tmp_path_factory.mktemp("shards")
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)).save(file, "JPEG")
    with ShardWriter(folder, 20) as writer:
        for i in range(40):
            writer.write({"__key__": f"k{i}", "jpg": b"broken" if i == 3 else file.getvalue(), "txt": b"noise"})
    encode_shards(folder, FakeEncoder(), progress=False)
    return folder, len(file.getvalue())


def test_times_add_up(shards, imagen):
    folder, size = shards
    options = ["--resolution", 32, "--low-resolution", 8, "--crop", 16, "--seconds", 0.2, "--workers", 1]
    found = json.loads(imagen("data", "bench", folder, *options, "--json"))
    assert tuple(found["milliseconds"]) == PARTS and all(value > 0 for value in found["milliseconds"].values())
    assert sum(found["milliseconds"].values()) * found["images_per_s"] == pytest.approx(1000, rel=0.01)
    assert found["encoder"] == "tests/fake" and found["kilobytes"] == pytest.approx(size / 1e3, rel=0.05)
    assert found["skipped"] >= found["images"] // 41 and found["images_per_s_a_worker"] > 0


def test_the_default_output_is_a_table(shards, imagen):
    shown = imagen("data", "bench", shards[0], "--resolution", 32, "--seconds", 0.1, "--workers", 0)
    assert all(part in shown for part in PARTS) and "images/s in one process" in shown and "worker" not in shown


def test_mistakes(shards, error_of, tmp_path):
    assert "contains no shards" in error_of("data", "bench", tmp_path)
    assert "data.workers is -1" in error_of("data", "bench", shards[0], "--workers", -1)
    assert "is not a multiple" in error_of("data", "bench", shards[0], "--resolution", 32, "--low-resolution", 7)
