"""Choose among the images of a sample, and read their sizes."""

import os
import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from imagen.data.shards.tar_samples import MemberRanges
from imagen.pictures.decoding import read_size

LARGEST = 1 << 30  # a side that selects the largest of several masters
_IMAGE = re.compile(r"(?:(\d+)\.)?(?:jpg|jpeg|png|webp)")
_MAGIC = (b"\xff\xd8", b"\x89PNG", b"RIFF")  # of JPEG, PNG and WebP
# Bytes that are read for a size: usually the first suffice, behind an EXIF thumbnail the second, for WebP all.
_READS = (1 << 12, 1 << 17, 1 << 24)


class BadSample(Exception):
    """A sample cannot be used: its image is damaged, missing or has an unusable size. The loader replaces it."""


def choose_image(extensions: Iterable[str], side: int) -> str:
    """Return the member to read for an image of `side` pixels: the smallest master (`SIZE.png`) that is large enough.

    Without one, the sample's only image (`jpg`), else its largest master. `side` and SIZE are shorter sides. Raises
    BadSample if there is no image.
    """
    sizes: dict[str, float] = {}
    for extension in extensions:
        if match := _IMAGE.fullmatch(extension):
            sizes[extension] = float(match[1]) if match[1] else float("inf")
    if not sizes:
        raise BadSample("no image (jpg, jpeg, png, webp or SIZE.png)")
    return min(sizes, key=lambda name: (sizes[name] < side, abs(sizes[name] - side), name))


def is_image(extension: str) -> bool:
    """Return whether a member with this extension is an image that training may read."""
    return _IMAGE.fullmatch(extension) is not None


def image_sizes(tar: Path, samples: Iterable[MemberRanges]) -> np.ndarray:
    """Return height and width of each sample's largest image, upright, int32 [N, 2]; 0 where no header can be read.

    Reads the beginning of each image only.
    """
    sizes = []
    with open(tar, "rb", buffering=0) as file:
        for members in samples:
            try:
                sizes.append(_size(file.fileno(), *members[choose_image(members, LARGEST)]))
            except BadSample:
                sizes.append((0, 0))
    return np.array(sizes, np.int32).reshape(-1, 2)


def _size(file: int, offset: int, length: int) -> tuple[int, int]:
    for count in dict.fromkeys(min(length, most) for most in _READS):
        data = os.pread(file, count, offset)
        if not data.startswith(_MAGIC):
            break
        try:
            return read_size(data)
        except Exception:  # Pillow raises almost anything on hostile bytes, and on WebP files that are cut
            continue
    return 0, 0
