"""`imagen data build --sizes`: smaller copies in place of the images."""

import io
import json

import numpy as np
import pytest
from PIL import Image
from samples import read_sample

from imagen.data.build.masters import encode_masters
from imagen.data.loading.config import DataConfig
from imagen.data.loading.stream import SampleReader
from imagen.data.shards.dataset import open_split
from imagen.errors import UserError


def gradient(width, height):
    """A smooth image, on which all good filters agree."""
    y, x = np.mgrid[:height, :width]
    return np.stack([255 * x / width, 255 * y / height, np.full(x.shape, 90)], -1).astype(np.uint8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    for name, size in {"wide": (300, 200), "tall": (90, 120), "large": (1000, 800)}.items():
        Image.fromarray(gradient(*size)).save(folder / f"{name}.png")
        (folder / f"{name}.txt").write_text(f"a {name} one")
    return folder


def sizes_of(sample):
    return {
        name: Image.open(io.BytesIO(data)).size
        for name, data in sample.members.items()
        if name.endswith(("jpg", "png"))
    }


def test_masters_have_the_aspect_and_pixels_of_the_image():
    pixels = gradient(300, 200)
    masters = encode_masters(pixels, (64, 128, 256))
    assert list(masters) == ["64.jpg", "128.jpg"]
    image = Image.open(io.BytesIO(masters["128.jpg"]))
    assert image.size == (192, 128)
    error = np.asarray(image, float) - np.asarray(Image.fromarray(pixels).resize((192, 128), Image.Resampling.BOX))
    assert np.abs(error).mean() < 1


def test_a_build_stores_masters_and_small_images_unchanged(imagen, folder, tmp_path):
    build = ("data", "build", folder, "--out", tmp_path / "shards", "--sizes", "64,128", "--workers", 1)
    assert "3 samples" in imagen(*build) and "3 samples" in imagen(*build)
    dataset = open_split(tmp_path / "shards")
    samples = {sample.key: sample for sample in (read_sample(dataset, i) for i in range(3))}
    assert sizes_of(samples["large"]) == {"64.jpg": (80, 64), "128.jpg": (160, 128)}
    assert sizes_of(samples["wide"]) == {"64.jpg": (96, 64), "128.jpg": (192, 128)}
    assert sizes_of(samples["tall"]) == {"64.jpg": (64, 85), "png": (90, 120)}
    assert samples["tall"].members["png"] == (folder / "tall.png").read_bytes()
    assert json.loads((tmp_path / "shards" / "build.json").read_text())["arguments"]["sizes"] == [64, 128]
    assert json.loads(imagen("data", "inspect", tmp_path / "shards", "--json"))["splits"]["train"]["unreadable"] == 0


def test_training_reads_the_master_of_its_size(imagen, folder, tmp_path):
    imagen("data", "build", folder, "--out", tmp_path / "shards", "--sizes", "64,128", "--workers", 1)
    imagen("data", "build", folder, "--out", tmp_path / "whole", "--workers", 1)
    small, whole = (
        SampleReader(open_split(tmp_path / name), DataConfig(), 64, None, None) for name in ("shards", "whole")
    )
    for i in range(3):
        key = small.dataset.key(i)
        high, _ = small.images(i)
        other, _ = whole.images([whole.dataset.key(j) for j in range(3)].index(key))
        assert high.shape == (3, 64, 64) and (high.float() - other.float()).abs().mean() < 1.5, key


def test_mistakes(error_of, folder, imagen, tmp_path):
    build = ("data", "build", folder, "--out", tmp_path / "shards", "--workers", 1)
    assert "--sizes names a size twice: 64, 64" in error_of(*build, "--sizes", "64,64")
    assert "--sizes is 4; it must be at least 8" in error_of(*build, "--sizes", 4)
    imagen(*build)
    assert "a build with sizes None, not [64]" in error_of(*build, "--sizes", 64)
    assert "give --copy --out SHARDS" in error_of("data", "build", tmp_path / "shards", "--sizes", 64)


def test_embedded_sizes_are_checked_before_anything_is_written(folder, tmp_path):
    from imagen.data.build.dataset import build
    from imagen.data.build.quality import Limits

    with pytest.raises(UserError, match="at most"):
        build(folder, tmp_path / "shards", limits=Limits(sizes=(10**6,)))
    assert not (tmp_path / "shards").exists()
