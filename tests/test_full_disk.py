"""Run every writing command on a full disk: it exits with code 2 and one line that names the path; a rerun completes.

The full disk is simulated: a limit on file sizes makes any write fail midway, and the n-th fsync of a file fails with
ENOSPC.
"""

import errno
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import pytest
import torch
from command_line import run_imagen
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
def limit_file_sizes(size: int) -> Iterator[None]:
    """Make writes beyond `size` bytes of any file fail inside the block."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@contextmanager
def fail_fsync_from(sync: int) -> Iterator[None]:
    """Make the `sync`-th fsync of a file and all later ones fail with ENOSPC inside the block."""
    original, calls = os.fsync, 0

    def fsync(handle: int) -> None:
        nonlocal calls
        if os.path.isdir(f"/proc/self/fd/{handle}"):  # a folder takes no space
            return original(handle)
        calls += 1
        if calls >= sync:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return original(handle)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        yield


# --- the commands: a function that prepares their inputs, and their arguments ---

Arguments = Callable[[Path, Path], list[object]]  # given the artifacts and OUT


def pictures(artifacts: Path, out: Path) -> None:
    """Write a folder of pairs beside OUT."""
    folder = out.parent / "pictures"
    folder.mkdir(exist_ok=True)
    for i in range(6):
        Image.new("RGB", (64, 72), (40 * i, 99, 0)).save(folder / f"{i}.png")
        if i:
            (folder / f"{i}.txt").write_text(f"picture {i}")


def copy_shards_without_sidecars(artifacts: Path, out: Path) -> None:
    shutil.copytree(artifacts / "shards" / "heldout", out)  # the smaller split
    for sidecar in out.glob("*.text.safetensors"):
        sidecar.unlink()


def copy_run(artifacts: Path, out: Path) -> None:
    shutil.copytree(artifacts / "base", out)


def pipelines(artifacts: Path, out: Path) -> None:
    """Copy a DeepFloyd IF pipeline beside OUT."""
    shutil.copytree(small_pipeline(artifacts.parent), out.parent / "IF")


@cache
def small_pipeline(folder: Path) -> Path:
    """Write a pipeline to a new folder in `folder`, and return it."""
    pytest.importorskip("diffusers")
    from pipelines import save_pipeline

    return save_pipeline(Path(tempfile.mkdtemp(dir=folder)) / "IF", 1)


def no_inputs(artifacts: Path, out: Path) -> None:
    pass


QUICK = [
    *("--data.workers", "0", "--train.batch_size", "4", "--train.gap_samples", "4", "--train.precision", "fp32"),
    *("--train.log_every", "1", "--train.checkpoint_every", "1", "--train.sample_every", "2", "--train.steps", "2"),
    *("--train.ema_snapshot_every", "1", "--train.ema_decays", "[0.9]"),
]
COMMANDS: dict[str, tuple[Callable[[Path, Path], None], Arguments]] = {
    "data build": (
        pictures,
        lambda artifacts, out: ["data", "build", out.parent / "pictures", "--out", out, "--workers", 1],
    ),
    "data emoji": (
        no_inputs,
        lambda artifacts, out: ["data", "emoji", "--out", out, "--sizes", 64, "--objects", 1, "--variants", 1],
    ),
    "data encode": (copy_shards_without_sidecars, lambda artifacts, out: ["data", "encode", out]),
    "data inspect": (
        no_inputs,
        lambda artifacts, out: ["data", "inspect", artifacts / "shards", "--html", out / "data.html"],
    ),
    "train": (
        no_inputs,
        lambda artifacts, out: ["train", "debug_64", "--data", artifacts / "shards", "--out", out, *QUICK],
    ),
    "export": (no_inputs, lambda artifacts, out: ["export", artifacts / "base", "--out", out]),
    "assemble": (no_inputs, lambda artifacts, out: ["assemble", artifacts / "base", artifacts / "sr", "--out", out]),
    "assemble --half": (no_inputs, lambda artifacts, out: ["assemble", artifacts / "base", "--half", "--out", out]),
    "convert deepfloyd": (
        pipelines,
        lambda artifacts, out: ["convert", "deepfloyd", out.parent / "IF", "--out", out],
    ),
    "convert diffusers": (
        pipelines,
        lambda artifacts, out: ["convert", "diffusers", out.parent / "cascade", "--out", out],
    ),
    "sample": (
        no_inputs,
        lambda artifacts, out: [
            "sample",
            artifacts / "base",
            "red",
            "blue",
            "--steps",
            1,
            "--batch-size",
            1,
            "--out",
            out,
        ],
    ),
    "upscale": (
        pictures,
        lambda artifacts, out: [
            "upscale",
            artifacts / "sr",
            out.parent / "pictures" / "0.png",
            "--steps",
            1,
            "--out",
            out,
        ],
    ),
    "evaluate --out": (
        no_inputs,
        lambda artifacts, out: [
            "evaluate-emoji",
            artifacts / "cascade",
            "--n",
            2,
            "--objects",
            4,
            "--steps",
            1,
            "--guidance",
            1,
            "--out",
            out,
        ],
    ),
    "evaluate a run": (
        copy_run,
        lambda artifacts, out: ["evaluate-emoji", out, "--n", 2, "--objects", 4, "--steps", 1],
    ),
    "compare": (no_inputs, lambda artifacts, out: ["compare", artifacts / "base", "--out", out / "curves.png"]),
}


def comparable_contents(out: Path) -> dict[str, bytes]:
    """Return all files except hidden ones, TensorBoard's and checkpoint shards; metrics without timing fields."""
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


def prepare_command(name: str, artifacts: Path, folder: Path) -> tuple[Path, list[object]]:
    """Prepare the inputs of a command in a new folder; return OUT and the arguments of the command."""
    prepare, arguments = COMMANDS[name]
    folder.mkdir()
    prepare(artifacts, folder / "out")
    if name == "convert diffusers":
        done = run_imagen("convert", "deepfloyd", folder / "IF", "--out", folder / "cascade")
        assert done.code == 0, done.err
    return folder / "out", arguments(artifacts, folder / "out")


@pytest.mark.parametrize("name", COMMANDS)
def test_a_full_disk_is_reported_in_one_line_and_a_rerun_completes(artifacts, tmp_path, name):
    whole, arguments = prepare_command(name, artifacts, tmp_path / "whole")
    done = run_imagen(*arguments)
    assert done.code == 0, done.err
    out, arguments = prepare_command(name, artifacts, tmp_path / "full")
    before = comparable_contents(out)
    for failure in (limit_file_sizes(0), limit_file_sizes(20_000), fail_fsync_from(2), fail_fsync_from(4)):
        with failure:
            done = run_imagen(*arguments)
        if done.code != 0:  # code 0: all its files were small, or few
            assert_names_the_disk(done, out)
        assert not list(out.rglob(".*.claim"))  # the rerun would wait for its owner
        assert comparable_contents(out).items() >= before.items()
    done = run_imagen(*arguments)
    assert done.code == 0, done.err
    assert without_folder_names(comparable_contents(out), tmp_path) == without_folder_names(
        comparable_contents(whole), tmp_path
    )
    assert [path.name for path in out.rglob(".*") if path.name not in (".lock", ".metadata")] == []


@pytest.mark.slow
def test_the_demo_reports_a_full_disk_and_a_rerun_completes(tmp_path):
    def run() -> dict:
        options = {"minutes": 0.01, "objects": 4, "prompts": 2, "pretrained": False, "device": "cpu"}
        return run_demo(tmp_path / "demo", **options, report=lambda line: None)

    for failure in (fail_fsync_from(2), limit_file_sizes(100_000)):
        with failure, pytest.raises(UserError, match=r"cannot write .*demo.*; free some space"):
            run()
    assert len(run()["prompts"]) == 2
    assert (tmp_path / "demo" / "index.html").is_file()


def assert_names_the_disk(done, out: Path) -> None:
    lines = [line for line in done.err.replace("\r", "\n").splitlines() if line.strip() and "%|" not in line]
    assert done.code == 2, done
    assert len(lines) == 1, done.err
    assert re.search(r"^imagen: cannot .*: (No space left on device|File too large); free some space", lines[0]), lines
    assert str(out) in lines[0], lines


def without_folder_names(files: dict[str, bytes], folder: Path) -> dict[str, bytes]:
    """Return the files with the names of the two folders replaced by X."""
    names = [str(folder / name).encode() for name in ("whole", "full")]
    return {name: data.replace(names[0], b"X").replace(names[1], b"X") for name, data in files.items()}
