"""Measure the overhead of DDP: throughput of two ranks with one thread each, relative to one process with two threads.

    python benchmarks/ddp_overhead.py [--preset emoji_64] [--rounds 3] [--steps 60] [--json FILE] [--FIELD VALUE ...]

Runs `imagen train` on emoji images with both layouts in turn, in every round. The throughput of a run is the median of
`images_per_s` in its metrics, without the first row. Needs an idle machine: other processes slow the two layouts down
by different amounts.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from measure import describe_machine, machine

from imagen.files import write_json

LAYOUTS = {"1 process, 2 threads": (1, 2), "2 ranks, 1 thread each": (2, 1)}


def main() -> None:
    options = arguments()
    print(describe_machine(machine()), flush=True)
    with tempfile.TemporaryDirectory() as scratch:
        data = Path(scratch, "shards")
        emoji = ["data", "emoji", "--out", str(data), "--sizes", "64,256", "--objects", "8"]
        subprocess.run([sys.executable, "-m", "imagen", *emoji], check=True, stdout=subprocess.DEVNULL)
        speeds: dict[str, list[float]] = {name: [] for name in LAYOUTS}
        for number in range(options.rounds):
            for name, (ranks, threads) in LAYOUTS.items():
                run = Path(scratch, f"{number}-{ranks}")
                speeds[name].append(images_per_s(options, data, run, ranks, threads))
                print(f"round {number + 1}: {name}: {speeds[name][-1]:.1f} images/s", flush=True)
    one, two = (speeds[name] for name in LAYOUTS)
    ratios = [b / a for a, b in zip(one, two, strict=True)]
    shown = ", ".join(f"{ratio:.2f}" for ratio in ratios)
    print(f"throughput of two ranks relative to one process: median {statistics.median(ratios):.2f} of {shown}")
    if options.json:
        write_json(options.json, {"machine": machine(), "preset": options.preset, "images_per_s": speeds})


def images_per_s(options: argparse.Namespace, data: Path, run: Path, ranks: int, threads: int) -> float:
    """Train in the new folder `run` with `ranks` ranks of `threads` threads, and return the throughput."""
    torchrun = ["torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    fields = {"steps": options.steps, "log_every": 10, "checkpoint_every": 0, "gap_every": 0, "gap_samples": 2}
    train = ["-m", "imagen", "train", options.preset, "--data", str(data), "--out", str(run), "--data.workers", "0"]
    train += [word for name, value in fields.items() for word in (f"--train.{name}", str(value))]
    train += ["--stage.sampling.steps", "1", *options.fields]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    subprocess.run(
        [sys.executable, "-m", *torchrun, *train], check=True, env=environment, stdout=subprocess.DEVNULL, stderr=None
    )
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return statistics.median(row["images_per_s"] for row in rows[1:])


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="emoji_64")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--json", type=Path)
    options, options.fields = parser.parse_known_args()
    return options


if __name__ == "__main__":
    main()
