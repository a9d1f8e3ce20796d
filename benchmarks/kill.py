"""Kill commands (SIGKILL) at random moments, rerun them, and compare their output with uninterrupted runs.

    python benchmarks/kill.py [--kills 10] [--seed 0] [--only train,sample] [--small]

Builds, encodes, trains, exports and samples on tiny data. Each command runs twice without interruption; then, once per
kill, it is killed and rerun to its end. One kill in ten happens before the first file is written; the others are spread
over the remaining duration. After a kill, every file with its final name must be complete; at the end all bytes must
equal those of the uninterrupted runs. The killed process is a fork that has already imported everything and loaded the
text encoder, because nothing is written before that. For ranks of torchrun see kill_train.py.
"""

import argparse
import importlib
import io
import json
import multiprocessing
import os
import random
import shutil
import signal
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors import safe_open

from imagen.text import encoder as text
from imagen.text.config import TextConfig
from imagen.text.encoder import load_text_encoder
from imagen.train import checkpoint
from imagen.train.checkpoint_metadata import read_checkpoint_metadata

FORK = multiprocessing.get_context("fork")  # a process in milliseconds
# Imported by the parent, so that kills do not fall into imports.
MODULES = (
    *(
        "imagen.train.run",
        "imagen.train.export",
        "imagen.cascade",
        "imagen.data.build.dataset",
        "imagen.data.embed.encode",
        "imagen.emoji.dataset",
    ),
    *("imagen.cli.table", "imagen.presets", "imagen.train.trainer", "transformers"),
)
TIMING = {"images_per_s", "data_wait", "data_wait_rank", "slowest_rank", "slowest_by", "memory_gb", "mfu", "eta_s"}
TRAIN = {
    "train.batch_size": 4,
    "train.log_every": 1,
    "train.checkpoint_every": 2,
    "train.sample_every": 4,
    "train.gap_every": 4,
    "train.gap_samples": 4,
    "train.precision": "fp32",
    "data.workers": 0,
    "train.ema_snapshot_every": 4,
    "train.ema_decays": "[0.9]",
}
Files = dict[str, bytes]
TRIES = 5  # to kill the command while it still runs


@dataclass(frozen=True)
class Work:
    """A command that writes into FOLDER/out, after `prepare`."""

    name: str
    arguments: Callable[[Path, Path], list[object]]  # takes the folder of the inputs, and FOLDER
    prepare: Callable[[Path, Path], object] = lambda given, folder: None


@dataclass
class Found:
    """Results of the kills of one command. It passes with no incomplete, different or leftover files."""

    quiet: float = 0.0  # seconds until the uninterrupted run starts to write
    seconds: float = 0.0  # duration of the uninterrupted run
    kills: int = 0
    met: int = 0  # kills that hit a running process
    finished: list[int] = field(default_factory=list)  # number of files with their final bytes, at each kill
    again: int = 0  # such files that the rerun wrote again
    torn: list[str] = field(default_factory=list)
    differ: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)  # hidden files after the rerun

    @property
    def is_right(self) -> bool:
        return not (self.torn or self.differ or self.left)


def works(steps: int = 40, pictures: int = 60) -> dict[str, Work]:
    """Return the commands by name."""
    fields = [word for name, value in {**TRAIN, "train.steps": steps}.items() for word in (f"--{name}", value)]
    prompts = ["a red apple", "an octopus on a blue background", "two cats"]
    draw = ["--n", pictures // len(prompts), "--batch-size", 2, "--steps", 2, "--stages", 1]
    every = [
        Work("build", lambda given, folder: ["data", "build", given / "tars", *_build(folder)]),
        Work(
            "encode",
            lambda given, folder: ["data", "encode", folder / "out"],
            lambda given, folder: shutil.copytree(given / "captions", folder / "out"),
        ),
        Work(
            "train",
            lambda given, folder: ["train", "debug_64", "--data", given / "shards", "--out", folder / "out", *fields],
        ),
        Work("export", lambda given, folder: ["export", given / "run", "--out", folder / "out"]),
        Work("sample", lambda given, folder: ["sample", given / "cascade", *prompts, *draw, "--out", folder / "out"]),
    ]
    return {work.name: work for work in every}


def _build(folder: Path) -> list[object]:
    return ["--copy", "--out", folder / "out", "--workers", 1, "--samples-per-shard", 12, "--max-rejected", 1]


def prepare(given: Path, tars: int = 12, captions: int = 40, steps: int = 4) -> None:
    """Write the inputs of all commands into `given`."""
    write_pictures(given / "tars", tars, 30)
    write_captions(given / "captions", captions)
    run(["data", "emoji", "--out", given / "shards", "--sizes", 64, "--objects", 2, "--variants", 1])
    fields = [word for name, value in {**TRAIN, "train.steps": steps}.items() for word in (f"--{name}", value)]
    run(["train", "debug_64", "--data", given / "shards", "--out", given / "run", *fields])
    run(["assemble", given / "run", "--out", given / "cascade"])


def write_pictures(folder: Path, tars: int, each: int) -> None:
    """Write tars of pairs; every seventh has no caption, every fifth is a copy of the previous one."""
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True)
    for number in range(tars):
        with tarfile.open(folder / f"{number:02d}.tar", "w") as tar:
            for i in range(number * each, (number + 1) * each):
                if i % 5 != 4:
                    pixels = rng.integers(0, 256, (12, 12, 3), np.uint8).repeat(16, 0).repeat(16, 1)
                file = io.BytesIO()
                Image.fromarray(pixels).save(file, "webp" if i % 2 else "gif")
                members = {"webp" if i % 2 else "gif": file.getvalue(), "txt": b"" if i % 7 == 6 else b"picture %d" % i}
                for ending, data in members.items():
                    info = tarfile.TarInfo(f"{i:06d}.{ending}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))


def write_captions(folder: Path, shards: int) -> None:
    """Write tars with three captions each, of one to four prompts."""
    from imagen.data.shards.writer import ShardWriter
    from imagen.emoji.dataset import heldout_prompts

    rng = random.Random(0)
    prompts = [prompt.prompt for prompt in heldout_prompts(64)]
    with ShardWriter(folder, 3) as writer:
        for i in range(3 * shards):
            caption = " and ".join(rng.choices(prompts, k=rng.randint(1, 4)))
            writer.write({"__key__": f"{i:06d}", "txt": caption.encode()})


def run(arguments: list[object], kill_after: float | None = None, log: Path | None = None) -> bool:
    """Run `imagen ARGUMENTS` in a new process, to its end or for `kill_after` seconds; return whether it was killed."""
    sys.stdout.flush()
    process = FORK.Process(target=_command, args=([str(argument) for argument in arguments], log))
    process.start()
    process.join(kill_after)
    if kill_after is not None:
        process.kill()
        process.join()
    if process.exitcode not in (0, -signal.SIGKILL):
        told = log.read_text()[-2000:] if log else ""
        raise RuntimeError(f"imagen {' '.join(map(str, arguments))} ended with {process.exitcode}: {told}")
    return process.exitcode != 0


def _command(arguments: list[str], log: Path | None) -> None:
    from imagen.cli import main

    handle = os.open(log or os.devnull, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(handle, stream)
    main(arguments)


def attack(work: Work, given: Path, scratch: Path, kills: int, seed: int, repeats: int = 2) -> Found:
    """Kill `work` `kills` times, each time in a new folder. repeats: number of uninterrupted runs before."""
    found, rng = Found(kills=kills), random.Random(f"{seed} {work.name}")
    log = scratch / f"{work.name}.log"

    def folder(name: str) -> tuple[Path, list[object]]:
        path = scratch / work.name / name
        path.mkdir(parents=True)
        work.prepare(given, path)
        return path / "out", work.arguments(given, path)

    for name in ("first", "whole")[-repeats:]:  # the first one is slower: it reads files from the disk
        out, arguments = folder(name)
        began = time.time()
        run(arguments, log=log)
        found.seconds = time.time() - began
        written = [path.stat().st_mtime for path in out.rglob("*") if path.is_file()]
        found.quiet = max(0.0, min(at for at in written if at > began) - began)
    expected = contents(out)
    if repeats > 1 and contents(scratch / work.name / "first" / "out") != expected:
        raise RuntimeError(f"{work.name}: two uninterrupted runs differ")
    early = kills // 10
    for kill in range(kills):
        for _ in range(TRIES):
            out, arguments = folder(str(kill))
            if kill < early:
                moment = rng.uniform(0, found.quiet)
            else:  # one in each of equal intervals
                share = (kill - early + rng.random()) / (kills - early)
                moment = found.quiet + (found.seconds - found.quiet) * share
            if run(arguments, kill_after=moment, log=log):
                found.met += 1
                break
            shutil.rmtree(out.parent)  # the command ended before the kill
        else:
            continue
        found.torn += [f"kill {kill + 1}: {problem}" for problem in torn(out)]
        whole = {name: stamp(out / name) for name, data in contents(out).items() if expected.get(name) == data}
        found.finished.append(len(whole))
        run(arguments, log=log)
        ended = contents(out)
        found.again += sum(stamp(out / name) != before for name, before in whole.items())
        names = sorted(expected.keys() | ended.keys())
        found.differ += [f"kill {kill + 1}: {name}" for name in names if expected.get(name) != ended.get(name)]
        found.left += [f"kill {kill + 1}: {name}" for name in hidden(out)]
        shutil.rmtree(out.parent)
    return found


def stamp(path: Path) -> tuple[int, int]:
    """Return a value that changes when a file or folder is written again."""
    return path.stat().st_ino, path.stat().st_mtime_ns


def contents(out: Path) -> Files:
    """Return the bytes of all files by path.

    Metrics exclude fields that depend on time; checkpoints are compared by their tensors, because their files contain
    the time. TensorBoard's files, which contain it too, are skipped.
    """
    found = {}
    for path in out.rglob("*") if out.exists() else ():
        name = path.relative_to(out)
        if path.is_dir() or name.parts[0] == "tensorboard" or any(part.startswith(".") for part in name.parts):
            continue
        if path.name == "metrics.jsonl":
            rows = [row for row in map(_row, path.read_bytes().splitlines(keepends=True)) if row is not None]
            found[str(name)] = json.dumps(rows).encode()
        elif path.suffix == ".distcp":
            found[str(name)] = _tensors(path.parent)
        else:
            found[str(name)] = path.read_bytes()
    return found


def _row(line: bytes) -> dict[str, object] | None:
    """Return a row of metrics; None for a truncated last one."""
    if not line.endswith(b"\n"):
        return None
    return {name: value for name, value in json.loads(line).items() if name not in TIMING}


def _tensors(step: Path) -> bytes:
    """Return the names, types, shapes and bytes of a checkpoint's tensors."""
    found = b""
    for kind in sorted({name.partition(".")[0] for name in read_checkpoint_metadata(step).state_dict_metadata}):
        for name, value in sorted(checkpoint.read(step, kind).items()):
            found += f"{kind} {name} {value.dtype} {tuple(value.shape)} ".encode()
            found += value.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    return found


def torn(out: Path) -> list[str]:
    """Return the problems of files that have their final names but cannot be read."""
    problems = []
    for name in contents(out) if out.exists() else ():
        try:
            _read(out / name)
        except Exception as error:
            problems.append(f"{name} is incomplete ({type(error).__name__}: {error})")
    return problems


def _read(path: Path) -> None:
    if path.suffix == ".json":
        json.loads(path.read_text())
    elif path.suffix == ".jsonl" and path.name != "metrics.jsonl":  # metrics.jsonl grows line by line
        for line in path.read_text().splitlines():
            json.loads(line)
    elif path.suffix == ".safetensors":
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118  # it is no dict
                file.get_tensor(name)
    elif path.suffix == ".npy":
        np.load(path, allow_pickle=False)
    elif path.suffix == ".png":
        Image.open(path).load()
    elif path.suffix == ".tar":
        with tarfile.open(path) as tar:
            for info in tar:
                tar.extractfile(info).read()  # type: ignore[union-attr]


def hidden(out: Path) -> list[str]:
    """Return leftover temporary files and leases; locks and checkpoint metadata are expected."""
    names = (path.name for path in out.rglob(".*") if path.name not in (".lock", ".metadata"))
    return sorted(names)


def main() -> None:
    options = arguments()
    warm()
    began, every = time.monotonic(), works(4, 6) if options.small else works()
    with tempfile.TemporaryDirectory() as scratch:
        given = Path(scratch, "given")
        prepare(given, *((3, 6, 2) if options.small else ()))
        found = {}
        for name in options.only or every:
            repeats = 1 if options.small else 2
            found[name] = attack(every[name], given, Path(scratch), options.kills, options.seed, repeats)
            for problem in (*found[name].torn, *found[name].differ, *found[name].left):
                print(f"{name}, {problem}", flush=True)
            print(f"{name}: files finished at each kill: {', '.join(map(str, found[name].finished))}", flush=True)
    print_table(found)
    kills = sum(one.kills for one in found.values())
    print(f"{kills} kills in {time.monotonic() - began:.0f} s: {'all passed' if right(found) else 'FAILED'}")
    sys.exit(not right(found))


def warm() -> None:
    """Import everything and load the text encoder; commands write nothing before that."""
    torch.set_num_threads(1)  # other threads would not survive a fork
    encoder = load_text_encoder(TextConfig())
    text.load_text_encoder = lambda config, *_: encoder if config == encoder.config else load_text_encoder(config)
    for module in MODULES:
        importlib.import_module(module)


def right(found: dict[str, Found]) -> bool:
    return all(one.is_right for one in found.values())


def print_table(found: dict[str, Found]) -> None:
    from rich.console import Console
    from rich.table import Table

    columns = ("seconds", "writes from", "kills", "met it", "files finished then", "again", "torn", "differ", "left")
    table = Table("command", *columns)
    for column in table.columns[1:]:
        column.justify = "right"
    for name, one in found.items():
        finished = f"{min(one.finished, default=0)} to {max(one.finished, default=0)}"
        numbers = (one.kills, one.met, finished, one.again, len(one.torn), len(one.differ), len(one.left))
        table.add_row(name, f"{one.seconds:.1f}", f"{one.quiet:.1f}", *map(str, numbers))
    Console(width=120).print(table)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=10, metavar="N", help="kills per command (default: 10)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="seed of the random moments (default: 0)")
    parser.add_argument("--only", type=lambda text: text.split(","), metavar="NAME,...", help="only these commands")
    parser.add_argument("--small", action="store_true", help="less work, for a test")
    return parser.parse_args()


if __name__ == "__main__":
    main()
