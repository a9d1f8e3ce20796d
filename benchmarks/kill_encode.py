"""`imagen data encode`, killed again and again: does it end as if it had not been?

    python benchmarks/kill_encode.py [--kills 20] [--seed 0]

Encodes a data set of many small shards with the embedded encoder, once without interruption, and once killed (SIGKILL)
at random moments and run again to the end. Every sidecar must have the same bytes in both; what is there after each
kill must be whole. What is killed is a fork that has the encoder already: nothing is written before it is loaded.
"""

import argparse
import multiprocessing
import os
import random
import signal
import sys
import tempfile
import time
from pathlib import Path

import torch
from tqdm import tqdm

from imagen.data.emoji import heldout_prompts
from imagen.data.encode import Encoder, encode_shards
from imagen.data.shard_writer import ShardWriter
from imagen.models.text import TextConfig, load_text_encoder

FORK = multiprocessing.get_context("fork")


def main() -> None:
    options = arguments()
    torch.set_num_threads(1)  # others would not survive a fork
    encoder, rng = load_text_encoder(TextConfig()), random.Random(options.seed)
    with tempfile.TemporaryDirectory() as scratch:
        whole, killed = Path(scratch, "whole"), Path(scratch, "killed")
        for folder in (whole, killed):
            write_shards(folder, options.shards)
        began = time.monotonic()
        run(whole, encoder)
        seconds = time.monotonic() - began
        print(f"uninterrupted: {options.shards} shards in {seconds:.1f} s", flush=True)

        expected, done, hits = sidecars(whole), [], 0
        for kill in tqdm(range(options.kills), unit=" kills"):
            # Within twice the time that a fair share of the rest takes: the last kill, too, finds something to do.
            left = seconds * (1 - len(sidecars(killed)) / options.shards)
            hits += run(killed, encoder, kill_after=rng.uniform(0, 2 * left / (options.kills - kill + 1)))
            found = sidecars(killed)
            if not found.items() <= expected.items():
                sys.exit(f"after kill {kill + 1} a sidecar differs from the uninterrupted run's")
            done.append(len(found))
        run(killed, encoder)
        found = sidecars(killed)
        left_behind = [path.name for path in killed.iterdir() if path.name.startswith(".")]
    print(f"{hits} of {options.kills} kills met a running process; shards done after each: {', '.join(map(str, done))}")
    equal = sum(found.get(name) == value for name, value in expected.items())
    print(f"{equal} of {len(expected)} sidecars have the bytes of the uninterrupted run; left behind: {left_behind}")
    sys.exit(found != expected)


def write_shards(folder: Path, shards: int) -> None:
    """Tars of captions alone, three each, of between one prompt and four."""
    rng = random.Random(0)
    prompts = [prompt.prompt for prompt in heldout_prompts(64)]
    with ShardWriter(folder, 3) as writer:
        for i in range(3 * shards):
            caption = " and ".join(rng.choices(prompts, k=rng.randint(1, 4)))
            writer.write({"__key__": f"{i:06d}", "txt": caption.encode()})


def run(folder: Path, encoder: Encoder, kill_after: float | None = None) -> bool:
    """Encode in a process of its own, to its end or until it is killed (True)."""
    process = FORK.Process(target=encode_shards, args=(folder, encoder), kwargs={"progress": False})
    process.start()
    if kill_after is not None:
        process.join(kill_after)
        process.kill()
    process.join()
    if process.exitcode not in (0, -signal.SIGKILL):
        sys.exit(f"encoding failed with exit code {process.exitcode}")
    return process.exitcode != 0


def sidecars(folder: Path) -> dict[str, bytes]:
    names = [name for name in os.listdir(folder) if name.endswith(".text.safetensors") and not name.startswith(".")]
    return {name: (folder / name).read_bytes() for name in names}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20, metavar="N")
    parser.add_argument("--shards", type=int, default=120, metavar="N", help="of three captions (default: 120)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the moments (default: 0)")
    return parser.parse_args()


if __name__ == "__main__":
    main()
