"""Every command that writes, on a disk that is full: one line that says where, exit code 2; run again, it completes.

Without a disk of its own: a limit on the size of files fails a write halfway, wherever it is made, and the n-th file
that is to be made safe fails as a full disk fails it.
"""

import errno
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from command_line import command
from PIL import Image

from imagen.emoji.demo import run_demo
from imagen.errors import UserError

resource = pytest.importorskip("resource")

TIMING = {"images_per_s", "data_wait", "data_wait_rank", "slowest_rank", "slowest_by", "memory_gb", "mfu", "eta_s"}


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@contextmanager
def files_up_to(size: int) -> Iterator[None]:
    """No file can grow beyond `size` bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@contextmanager
def full_at(sync: int) -> Iterator[None]:
    """The file that is the `sync`-th to be made safe does not fit, nor does a later one."""
    original, calls = os.fsync, 0

    def fsync(handle: int) -> None:
        nonlocal calls
        if os.path.isdir(f"/proc/self/fd/{handle}"):  # a folder: takes no space
            return original(handle)
        calls += 1
        if calls >= sync:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return original(handle)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        yield


# --- the commands: what they are given in OUT, if anything, and their arguments

Arguments = Callable[[Path, Path], list[object]]  # of the `made` folder, and of OUT


def pictures(made: Path, out: Path) -> None:
    """A folder of pairs beside OUT."""
    folder = out.parent / "pictures"
    folder.mkdir(exist_ok=True)
    for i in range(6):
        Image.new("RGB", (64, 72), (40 * i, 99, 0)).save(folder / f"{i}.png")
        if i:
            (folder / f"{i}.txt").write_text(f"picture {i}")


def captions(made: Path, out: Path) -> None:
    shutil.copytree(made / "shards" / "train", out)
    for sidecar in out.glob("*.text.safetensors"):
        sidecar.unlink()


def a_run(made: Path, out: Path) -> None:
    shutil.copytree(made / "base", out)


def pipelines(made: Path, out: Path) -> None:
    """What `convert deepfloyd` reads."""
    pytest.importorskip("diffusers")
    from pipelines import save

    save(out.parent / "IF", 1)


def nothing(made: Path, out: Path) -> None:
    pass


QUICK = [
    *("--data.workers", "0", "--train.batch_size", "4", "--train.gap_samples", "4", "--train.precision", "fp32"),
    *("--train.log_every", "1", "--train.checkpoint_every", "1", "--train.sample_every", "2", "--train.steps", "2"),
    *("--train.ema_snapshot_every", "1", "--train.ema_decays", "[0.9]"),
]
COMMANDS: dict[str, tuple[Callable[[Path, Path], None], Arguments]] = {
    "data build": (
        pictures,
        lambda made, out: ["data", "build", out.parent / "pictures", "--out", out, "--workers", 1],
    ),
    "data emoji": (
        nothing,
        lambda made, out: ["data", "emoji", "--out", out, "--sizes", 64, "--objects", 1, "--variants", 1],
    ),
    "data encode": (captions, lambda made, out: ["data", "encode", out]),
    "data inspect": (nothing, lambda made, out: ["data", "inspect", made / "shards", "--html", out / "data.html"]),
    "train": (
        nothing,
        lambda made, out: ["train", "debug_64", "--data", made / "shards", "--out", out, *QUICK],
    ),
    "export": (nothing, lambda made, out: ["export", made / "base", "--out", out]),
    "assemble": (nothing, lambda made, out: ["assemble", made / "base", made / "sr", "--out", out]),
    "assemble --half": (nothing, lambda made, out: ["assemble", made / "base", "--half", "--out", out]),
    "convert deepfloyd": (
        pipelines,
        lambda made, out: ["convert", "deepfloyd", out.parent / "IF", "--out", out],
    ),
    "convert diffusers": (
        pipelines,
        lambda made, out: ["convert", "diffusers", out.parent / "cascade", "--out", out],
    ),
    "sample": (
        nothing,
        lambda made, out: ["sample", made / "base", "red", "blue", "--steps", 1, "--batch-size", 1, "--out", out],
    ),
    "upscale": (
        pictures,
        lambda made, out: ["upscale", made / "sr", out.parent / "pictures" / "0.png", "--steps", 1, "--out", out],
    ),
    "evaluate --out": (
        nothing,
        lambda made, out: ["evaluate-emoji", made / "cascade", "--n", 2, "--steps", 1, "--guidance", 1, "--out", out],
    ),
    "evaluate a run": (a_run, lambda made, out: ["evaluate-emoji", out, "--n", 2, "--steps", 1]),
    "compare": (nothing, lambda made, out: ["compare", made / "base", "--out", out / "curves.png"]),
}


def contents(out: Path) -> dict[str, bytes]:
    """All files but hidden ones and TensorBoard's; metrics without what the clock decides, of checkpoints the facts."""
    found = {}
    for path in sorted(out.rglob("*")) if out.exists() else ():
        name = path.relative_to(out)
        hidden = any(part.startswith(".") for part in name.parts)
        if path.is_dir() or hidden or name.parts[0] == "tensorboard" or path.suffix == ".distcp":
            continue
        found[str(name)] = path.read_bytes()
        if path.name == "metrics.jsonl":
            rows = [json.loads(line) for line in path.read_text().splitlines()]
            found[str(name)] = repr([{k: v for k, v in row.items() if k not in TIMING} for row in rows]).encode()
    return found


def place(name: str, made: Path, folder: Path) -> tuple[Path, list[object]]:
    """OUT in a folder of its own, prepared, and the command's arguments."""
    prepare, arguments = COMMANDS[name]
    folder.mkdir()
    prepare(made, folder / "out")
    if name == "convert diffusers":
        done = command("convert", "deepfloyd", folder / "IF", "--out", folder / "cascade")
        assert done.code == 0, done.err
    return folder / "out", arguments(made, folder / "out")


@pytest.mark.parametrize("name", COMMANDS)
def test_a_full_disk_is_said_in_one_line_and_the_rerun_completes(made, tmp_path, name):
    whole, arguments = place(name, made, tmp_path / "whole")
    done = command(*arguments)
    assert done.code == 0, done.err
    out, arguments = place(name, made, tmp_path / "full")
    before = contents(out)
    for failure in (files_up_to(0), files_up_to(20_000), full_at(2), full_at(4)):
        with failure:
            done = command(*arguments)
        if done.code != 0:  # else all its files were small, or few
            assert_said(done, out)
        assert contents(out).items() >= before.items()
    done = command(*arguments)
    assert done.code == 0, done.err
    assert normal(contents(out), tmp_path) == normal(contents(whole), tmp_path)
    assert [path.name for path in out.rglob(".*") if path.name not in (".lock", ".metadata")] == []


def test_the_demo(tmp_path):
    def run() -> dict:
        options = {"minutes": 0.01, "objects": 4, "prompts": 2, "pretrained": False, "device": "cpu"}
        return run_demo(tmp_path / "demo", **options, say=lambda line: None)

    for failure in (full_at(2), files_up_to(100_000)):
        with failure, pytest.raises(UserError, match=r"cannot write .*demo.*; free some space"):
            run()
    assert len(run()["prompts"]) == 2
    assert (tmp_path / "demo" / "index.html").is_file()


def assert_said(done, out: Path) -> None:
    lines = [line for line in done.err.replace("\r", "\n").splitlines() if line.strip() and "%|" not in line]
    assert done.code == 2, done
    assert len(lines) == 1, done.err
    assert re.search(r"^imagen: cannot .*: (No space left on device|File too large); free some space", lines[0]), lines
    assert str(out) in lines[0], lines


def normal(files: dict[str, bytes], folder: Path) -> dict[str, bytes]:
    """Without the names of the two folders."""
    names = [str(folder / name).encode() for name in ("whole", "full")]
    return {name: data.replace(names[0], b"X").replace(names[1], b"X") for name, data in files.items()}
