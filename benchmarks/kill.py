"""Kill commands (SIGKILL) at random moments, rerun them, and compare their output with uninterrupted runs.

    python benchmarks/kill.py [--kills 10] [--seed 0] [--only train,sample] [--small]

Builds, encodes, trains, exports and samples with tiny data. Each command first runs twice without interruption. Then,
for each kill, it is started in a new folder, killed, and rerun to its end. One kill in ten happens before the first
file is written; the others are spread over the remaining duration. After a kill, every file with a final name must be
complete; after the rerun, all bytes must equal those of the uninterrupted runs. The killed process is a fork that has
imported all modules and loaded the text encoder, because nothing is written before that. For ranks of torchrun, see
kill_train.py.
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

FORK = multiprocessing.get_context("fork")  # starts a process in milliseconds
# Imported by the parent process, so that kills do not happen during imports.
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
TRIES = 5  # attempts to kill the command before it ends


@dataclass(frozen=True)
class Command:
    """An `imagen` command that writes into FOLDER/out, after `prepare`."""

    name: str
    arguments: Callable[[Path, Path], list[object]]  # takes the folder of the inputs, and FOLDER
    prepare: Callable[[Path, Path], object] = lambda inputs, folder: None


@dataclass
class Result:
    """Results of the kills of one command. It passes if no files are incomplete, different or left over."""

    first_write: float = 0.0  # seconds until the uninterrupted run starts to write
    seconds: float = 0.0  # duration of the uninterrupted run
    kills: int = 0
    hits: int = 0  # kills that hit a running process
    finished: list[int] = field(default_factory=list)  # number of files with their final bytes, at each kill
    rewritten: int = 0  # such files that the rerun wrote again
    incomplete: list[str] = field(default_factory=list)  # files with final names that cannot be read after a kill
    different: list[str] = field(default_factory=list)  # files that differ from the uninterrupted run's
    leftover: list[str] = field(default_factory=list)  # hidden files after the rerun

    @property
    def passed(self) -> bool:
        return not (self.incomplete or self.different or self.leftover)


def commands(steps: int = 40, images: int = 60) -> dict[str, Command]:
    """Return the commands by name."""
    fields = [word for name, value in {**TRAIN, "train.steps": steps}.items() for word in (f"--{name}", value)]
    prompts = ["a red apple", "an octopus on a blue background", "two cats"]
    options = ["--n", images // len(prompts), "--batch-size", 2, "--steps", 2, "--stages", 1]
    every = [
        Command("build", lambda inputs, folder: ["data", "build", inputs / "tars", *_build(folder)]),
        Command(
            "encode",
            lambda inputs, folder: ["data", "encode", folder / "out"],
            lambda inputs, folder: shutil.copytree(inputs / "captions", folder / "out"),
        ),
        Command(
            "train",
            lambda inputs, folder: ["train", "debug_64", "--data", inputs / "shards", "--out", folder / "out", *fields],
        ),
        Command("export", lambda inputs, folder: ["export", inputs / "run", "--out", folder / "out"]),
        Command(
            "sample", lambda inputs, folder: ["sample", inputs / "cascade", *prompts, *options, "--out", folder / "out"]
        ),
    ]
    return {command.name: command for command in every}


def _build(folder: Path) -> list[object]:
    return ["--copy", "--out", folder / "out", "--workers", 1, "--samples-per-shard", 12, "--max-rejected", 1]


def prepare(inputs: Path, tars: int = 12, captions: int = 40, steps: int = 4) -> None:
    """Write the inputs of all commands into `inputs`."""
    write_image_tars(inputs / "tars", tars, 30)
    write_captions(inputs / "captions", captions)
    run(["data", "emoji", "--out", inputs / "shards", "--sizes", 64, "--objects", 2, "--variants", 1])
    fields = [word for name, value in {**TRAIN, "train.steps": steps}.items() for word in (f"--{name}", value)]
    run(["train", "debug_64", "--data", inputs / "shards", "--out", inputs / "run", *fields])
    run(["assemble", inputs / "run", "--out", inputs / "cascade"])


def write_image_tars(folder: Path, tars: int, each: int) -> None:
    """Write tars of pairs; every seventh pair has no caption, every fifth is a copy of the previous one."""
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
        output = log.read_text()[-2000:] if log else ""
        raise RuntimeError(f"imagen {' '.join(map(str, arguments))} ended with exit code {process.exitcode}: {output}")
    return process.exitcode != 0


def _command(arguments: list[str], log: Path | None) -> None:
    from imagen.cli import main

    handle = os.open(log or os.devnull, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(handle, stream)
    main(arguments)


def kill_and_rerun(command: Command, inputs: Path, scratch: Path, kills: int, seed: int, repeats: int = 2) -> Result:
    """Kill and rerun `command` `kills` times, each time in a new folder. repeats: number of uninterrupted runs."""
    result, rng = Result(kills=kills), random.Random(f"{seed} {command.name}")
    log = scratch / f"{command.name}.log"

    def folder(name: str) -> tuple[Path, list[object]]:
        path = scratch / command.name / name
        path.mkdir(parents=True)
        command.prepare(inputs, path)
        return path / "out", command.arguments(inputs, path)

    for name in ("first", "whole")[-repeats:]:  # the first one is slower: it reads files from the disk
        out, arguments = folder(name)
        began = time.time()
        run(arguments, log=log)
        result.seconds = time.time() - began
        written = [path.stat().st_mtime for path in out.rglob("*") if path.is_file()]
        result.first_write = max(0.0, min(at for at in written if at > began) - began)
    expected = contents(out)
    if repeats > 1 and contents(scratch / command.name / "first" / "out") != expected:
        raise RuntimeError(f"{command.name}: two uninterrupted runs differ")
    early = kills // 10
    for kill in range(kills):
        for _ in range(TRIES):
            out, arguments = folder(str(kill))
            if kill < early:
                moment = rng.uniform(0, result.first_write)
            else:  # one in each of equal intervals
                share = (kill - early + rng.random()) / (kills - early)
                moment = result.first_write + (result.seconds - result.first_write) * share
            if run(arguments, kill_after=moment, log=log):
                result.hits += 1
                break
            shutil.rmtree(out.parent)  # the command ended before the kill
        else:
            continue
        result.incomplete += [f"kill {kill + 1}: {problem}" for problem in unreadable(out)]
        finished = {name: stamp(out / name) for name, data in contents(out).items() if expected.get(name) == data}
        result.finished.append(len(finished))
        run(arguments, log=log)
        ended = contents(out)
        result.rewritten += sum(stamp(out / name) != before for name, before in finished.items())
        names = sorted(expected.keys() | ended.keys())
        result.different += [f"kill {kill + 1}: {name}" for name in names if expected.get(name) != ended.get(name)]
        result.leftover += [f"kill {kill + 1}: {name}" for name in hidden(out)]
        shutil.rmtree(out.parent)
    return result


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


def unreadable(out: Path) -> list[str]:
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
    elif path.suffix == ".jsonl" and path.name != "metrics.jsonl":  # the last line of metrics.jsonl may be incomplete
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
    began, every = time.monotonic(), commands(4, 6) if options.small else commands()
    with tempfile.TemporaryDirectory() as scratch:
        inputs = Path(scratch, "inputs")
        prepare(inputs, *((3, 6, 2) if options.small else ()))
        results = {}
        for name in options.only or every:
            repeats = 1 if options.small else 2
            result = kill_and_rerun(every[name], inputs, Path(scratch), options.kills, options.seed, repeats)
            results[name] = result
            for problem in (*result.incomplete, *result.different, *result.leftover):
                print(f"{name}, {problem}", flush=True)
            print(f"{name}: files finished at each kill: {', '.join(map(str, result.finished))}", flush=True)
    print_table(results)
    kills = sum(result.kills for result in results.values())
    passed = all(result.passed for result in results.values())
    print(f"{kills} kills in {time.monotonic() - began:.0f} s: {'all passed' if passed else 'FAILED'}")
    sys.exit(not passed)


def warm() -> None:
    """Import everything and load the text encoder; commands write nothing before that."""
    torch.set_num_threads(1)  # other threads would not survive a fork
    encoder = load_text_encoder(TextConfig())
    text.load_text_encoder = lambda config, *_: encoder if config == encoder.config else load_text_encoder(config)
    for module in MODULES:
        importlib.import_module(module)


def print_table(results: dict[str, Result]) -> None:
    """Print a row per command; the columns are explained at `Result`."""
    from rich.console import Console
    from rich.table import Table

    columns = (
        *("seconds", "writes from", "kills", "hits", "files finished"),
        *("rewritten", "incomplete", "different", "left over"),
    )
    table = Table("command", *columns)
    for column in table.columns[1:]:
        column.justify = "right"
    for name, result in results.items():
        finished = f"{min(result.finished, default=0)} to {max(result.finished, default=0)}"
        files = (len(found) for found in (result.incomplete, result.different, result.leftover))
        numbers = (result.kills, result.hits, finished, result.rewritten, *files)
        table.add_row(name, f"{result.seconds:.1f}", f"{result.first_write:.1f}", *map(str, numbers))
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
