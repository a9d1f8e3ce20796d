"""A toy data set with the colour of each image as its caption, and an experiment that trains on it in seconds."""

import io
import json

import numpy as np
import pytest
import torch
from encoders import ToyEncoder
from PIL import Image

from imagen.data.embed.encode import encode_shards
from imagen.data.shards.writer import ShardWriter

COLOURS = {"red": (220, 30, 30), "green": (30, 200, 30), "blue": (30, 30, 220), "white": (240, 240, 240)}


@pytest.fixture(scope="session")
def shards(tmp_path_factory):
    """A shards folder with 96 training and 32 held-out images of 16x16, and 8x8 versions for super-resolution."""
    folder = tmp_path_factory.mktemp("shards")
    rng = np.random.default_rng(0)
    for split, count in (("train", 96), ("heldout", 32)):
        with ShardWriter(folder / split, 32) as writer:
            for i in range(count):
                name = list(COLOURS)[rng.integers(len(COLOURS))]
                pixels = rng.normal(COLOURS[name], 10, (16, 16, 3)).clip(0, 255).astype(np.uint8)
                file = io.BytesIO()
                Image.fromarray(pixels).save(file, "png")
                writer.write({"__key__": f"{split}{i:03d}", "16.png": file.getvalue(), "txt": name.encode()})
    encode_shards(folder, ToyEncoder(), progress=False)
    return folder


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def rows():
    """Return a function that reads RUN/metrics.jsonl without the fields that depend on time."""

    def read(run):
        lines = (run / "metrics.jsonl").read_text().splitlines()
        timing = {"images_per_s", "data_wait", "data_wait_rank", "slowest_rank", "slowest_by", "memory_gb", "eta_s"}
        return [{k: v for k, v in json.loads(line).items() if k not in timing} for line in lines]

    return read
