"""Damage files and folders on purpose, and simulate a full disk."""

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


def read_files(folder: Path) -> dict[str, bytes]:
    """Return all files that must not change: everything except logs, to which commands append."""
    found = (path for path in folder.rglob("*") if path.is_file() and "tfevents" not in path.name)
    return {str(path.relative_to(folder)): path.read_bytes() for path in found if path.name != "metrics.jsonl"}


@contextlib.contextmanager
def max_file_size(size: int) -> Iterator[None]:
    """Make writes beyond `size` bytes fail midway, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def write_noise_image(path: Path, size: tuple[int, int] = (64, 64)) -> Path:
    """Write an image of noise, and return its path."""
    Image.effect_noise(size, 60).convert("RGB").save(path)
    return path


# --- shards ---


def damage_tar(folder: Path) -> None:
    """Truncate the tar of the training split."""
    (tar,) = (folder / "train").glob("*.tar")
    tar.write_bytes(tar.read_bytes()[:-20_000])


def corrupt_images(folder: Path) -> None:
    """Zero the first 100 bytes of every image in the training split."""
    (tar,) = (folder / "train").glob("*.tar")
    data = bytearray(tar.read_bytes())
    with tarfile.open(tar) as archive:
        for member in archive:
            if member.name.endswith(".png"):
                data[member.offset_data : member.offset_data + 100] = bytes(100)
    tar.write_bytes(data)


def damage_file(pattern: str, change: Callable[[Path], object]) -> Callable[[Path], None]:
    """Return a function that applies `change` to the one file of the training split that matches `pattern`."""

    def apply(folder: Path) -> None:
        (path,) = (folder / "train").glob(pattern)
        change(path)

    return apply


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def overwrite(path: Path) -> None:
    path.write_bytes(b"\xff" * 200)


# --- cascades ---


def edit_manifest(change: Callable[[Any], object]) -> Callable[[Path], None]:
    """Return a function that applies `change` to the parsed cascade.json of a folder."""

    def apply(folder: Path) -> None:
        value = json.loads((folder / "cascade.json").read_text())
        change(value)
        (folder / "cascade.json").write_text(json.dumps(value))

    return apply


def broken_weights(folder: Path) -> None:
    """Replace the weights of a stage by bytes that are not safetensors, with a matching hash."""
    (path,) = folder.glob("stage-256-*")
    path.write_bytes(b"nonsense")
    _set_hash(folder, path)


def other_weights(folder: Path) -> None:
    """Remove a tensor from the weights of a stage, with a matching hash."""
    (path,) = folder.glob("stage-256-*")
    tensors = load_file(path)
    tensors.pop("conv_in.bias")
    save_file(tensors, path)
    _set_hash(folder, path)


def _set_hash(folder: Path, path: Path) -> None:
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    edit_manifest(lambda value: value["stages"][1].update(sha256=sha256))(folder)
