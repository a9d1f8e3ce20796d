"""Files and folders made wrong on purpose, and a disk that is full."""

import contextlib
import hashlib
import json
import resource
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from PIL import Image
from safetensors.torch import load_file, save_file


def files(folder: Path) -> dict[str, bytes]:
    """Return what must not change: everything but logs, which only grow."""
    found = (path for path in folder.rglob("*") if path.is_file() and "tfevents" not in path.name)
    return {str(path.relative_to(folder)): path.read_bytes() for path in found if path.name != "metrics.jsonl"}


@contextlib.contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Fail writes beyond `size` bytes half-way, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def picture(path: Path, size: tuple[int, int] = (64, 64)) -> Path:
    """Write an image of noise."""
    Image.effect_noise(size, 60).convert("RGB").save(path)
    return path


# --- shards ---


def damage_tar(folder: Path) -> None:
    (tar,) = (folder / "train").glob("*.tar")
    tar.write_bytes(tar.read_bytes()[:-20_000])


def corrupt_pictures(folder: Path) -> None:
    (tar,) = (folder / "train").glob("*.tar")
    data = bytearray(tar.read_bytes())
    with tarfile.open(tar) as archive:
        for member in archive:
            if member.name.endswith(".png"):
                data[member.offset_data : member.offset_data + 100] = bytes(100)
    tar.write_bytes(data)


def damage(pattern: str, change: Callable[[Path], object]) -> Callable[[Path], None]:
    """Return a function that changes the one file of a training split that matches `pattern`."""

    def apply(folder: Path) -> None:
        (path,) = (folder / "train").glob(pattern)
        change(path)

    return apply


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def garble(path: Path) -> None:
    path.write_bytes(b"\xff" * 200)


# --- cascades ---


def edit(change: Callable[[Any], object]) -> Callable[[Path], None]:
    """Return a function that changes the JSON of a cascade."""

    def apply(folder: Path) -> None:
        value = json.loads((folder / "cascade.json").read_text())
        change(value)
        (folder / "cascade.json").write_text(json.dumps(value))

    return apply


def broken_weights(folder: Path) -> None:
    """Write no safetensors file at all, though its hash is right."""
    (path,) = folder.glob("stage-256-*")
    path.write_bytes(b"nonsense")
    _set_hash(folder, path)


def other_weights(folder: Path) -> None:
    """Leave out a tensor; the hash is right."""
    (path,) = folder.glob("stage-256-*")
    tensors = load_file(path)
    tensors.pop("conv_in.bias")
    save_file(tensors, path)
    _set_hash(folder, path)


def _set_hash(folder: Path, path: Path) -> None:
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    edit(lambda value: value["stages"][1].update(sha256=sha256))(folder)
