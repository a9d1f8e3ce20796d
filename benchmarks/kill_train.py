"""Kill ranks of `imagen train` under torchrun, and compare the result with an uninterrupted run.

    python benchmarks/kill_train.py [--kills 20] [--ranks 2] [--shard 1] [--seed 0]

Trains `debug_64` on a small emoji data set twice: without interruption, and with a rank killed (SIGKILL) at random
moments. Each kill follows a new checkpoint of the restarted ranks after a random delay, so that some hit a save.
Checkpoints are written every third step. Metrics and all tensors of the last checkpoint must be bit-identical.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from imagen.train import checkpoint
from imagen.train.checkpoint import checkpoint_paths

TIMING = {"images_per_s", "data_wait", "data_wait_rank", "slowest_rank", "slowest_by", "memory_gb", "mfu", "eta_s"}


def main() -> None:
    options = arguments()
    rng = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as scratch:
        data, whole, killed = (Path(scratch, name) for name in ("data", "whole", "killed"))
        emoji = ["data", "emoji", "--out", str(data), "--sizes", "64", "--objects", "4", "--variants", "1"]
        subprocess.run([sys.executable, "-m", "imagen", *emoji], check=True, stdout=subprocess.DEVNULL)
        if (code := start(options, data, whole, Path(scratch, "whole.log")).wait()) != 0:
            sys.exit(f"the uninterrupted run ended with exit code {code}")
        log = Path(scratch, "killed.log")
        torchrun = start(options, data, killed, log)
        kills, in_a_save = 0, 0
        while torchrun.poll() is None and kills < options.kills:
            if not wait_for_checkpoint(torchrun, killed):
                break
            time.sleep(rng.uniform(0, 1.5))
            saving = any((killed / "checkpoints").glob(".step-*.tmp"))
            try:
                os.kill(rng.choice(children(torchrun.pid)), signal.SIGKILL)
            except (IndexError, ProcessLookupError):
                continue
            kills, in_a_save = kills + 1, in_a_save + saving
            print(f"kill {kills}{' during a save' if saving else ''}, at step {last_step(killed)}", flush=True)
        if (code := torchrun.wait()) != 0:
            sys.exit(f"torchrun ended with exit code {code} after {kills} kills:\n{log.read_text()[-3000:]}")
        same = rows(killed) == rows(whole) and tensors(killed) == tensors(whole)
    print(f"{kills} kills, {in_a_save} of them during a save: the result is {'identical' if same else 'DIFFERENT'}")
    sys.exit(not same)


def start(options: argparse.Namespace, data: Path, run: Path, log: Path) -> subprocess.Popen:
    torchrun = ["torch.distributed.run", "--standalone", "--nproc-per-node", str(options.ranks)]
    torchrun += ["--max-restarts", str(options.kills + 5), "--monitor-interval", "0.1"]
    fields = {"train.steps": options.steps, "train.checkpoint_every": 3, "train.log_every": 2, "train.sample_every": 0}
    fields |= {"train.batch_size": 8, "parallel.shard": options.shard, "train.gap_every": 0}
    train = ["imagen", "train", "debug_64", "--data", str(data), "--out", str(run)]
    train += [word for name, value in fields.items() for word in (f"--{name}", str(value))]
    command = [sys.executable, "-m", *torchrun, "-m", *train]
    with open(log, "w") as file:
        return subprocess.Popen(command, stdout=file, stderr=file, env={**os.environ, "OMP_NUM_THREADS": "1"})


def wait_for_checkpoint(torchrun: subprocess.Popen, run: Path) -> bool:
    """Wait for a new checkpoint; return False if torchrun ends first."""
    before, started = checkpoint_paths(run / "checkpoints"), time.monotonic()
    while torchrun.poll() is None:
        if checkpoint_paths(run / "checkpoints") != before:
            return True
        if time.monotonic() - started > 180:
            sys.exit("no new checkpoint within three minutes")
        time.sleep(0.01)
    return False


def children(process: int) -> list[int]:
    return [int(pid) for pid in Path(f"/proc/{process}/task/{process}/children").read_text().split()]


def last_step(run: Path) -> int:
    paths = checkpoint_paths(run / "checkpoints")
    return int(paths[-1].name.removeprefix("step-")) if paths else 0


def rows(run: Path) -> list[dict]:
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [{name: value for name, value in json.loads(line).items() if name not in TIMING} for line in lines]


def tensors(run: Path) -> dict[str, list]:
    """Return the tensors of the last checkpoint as lists of bytes."""
    path = checkpoint_paths(run / "checkpoints")[-1]
    found = {kind: checkpoint.read(path, kind) for kind in ("model", "ema", "optimizer")}
    return {
        f"{kind}.{name}": value.contiguous().view(torch.uint8 if value.ndim else value.dtype).flatten().tolist()
        for kind, values in found.items()
        for name, value in values.items()
    }


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--shard", type=int, default=1)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


if __name__ == "__main__":
    main()
