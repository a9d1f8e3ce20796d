"""Build shards of CIFAR-10 with captions that name the class: "a photo of a cat"."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from imagen.data.build.splits import finished_build, write_splits
from imagen.data.sources.cifar10 import CLASSES, SIDE, read_cifar10

SPLITS = {"train": "train", "heldout": "test"}  # folder: CIFAR-10's name
# CIFAR-10's two mechanical names are replaced by everyday words.
NAMES = tuple({"automobile": "car", "airplane": "plane"}.get(name, name) for name in CLASSES)


@dataclass(frozen=True)
class Photo:
    """One image of CIFAR-10. `number` counts from 0 within its split."""

    number: int
    image_HWC: np.ndarray
    label: int

    def sample(self, sizes: Sequence[int]) -> dict[str, Any]:
        """Return the shard's sample: a PNG, a caption, and the class as JSON."""
        stream = io.BytesIO()
        Image.fromarray(self.image_HWC).save(stream, format="PNG")
        return {
            "__key__": f"{self.number:05d}-{NAMES[self.label]}",
            f"{SIDE}.png": stream.getvalue(),
            "txt": caption(self.label).encode(),
            "json": f'{{"label": {self.label}}}'.encode(),
        }


def caption(label: int) -> str:
    return f"a photo of a {NAMES[label]}"


def build_cifar10(source: Path, out: Path, *, progress: bool = True) -> dict[str, Any]:
    """Build `out`/train (50,000 images) and `out`/heldout (the 10,000 test images); return `out`/dataset.json.

    A finished build is not repeated; a killed one starts again. Raises UserError if `source` is not CIFAR-10 in one of
    the forms that `imagen.data.sources.cifar10` reads, or if `out` contains anything else.
    """
    arguments = {"data": "cifar10"}
    if finished := finished_build(out, arguments):
        return finished
    splits = {}
    for folder, name in SPLITS.items():
        images_NHWC, labels_N = read_cifar10(source, name)
        splits[folder] = [
            Photo(number, image, int(label))
            for number, (image, label) in enumerate(zip(images_NHWC, labels_N, strict=True))
        ]
    description = {"source": "CIFAR-10 (Krizhevsky, 2009)", "classes": list(NAMES), "names": list(NAMES)}
    return write_splits(out, arguments, splits, [SIDE], description, workers=1, progress=progress, name="CIFAR-10")
