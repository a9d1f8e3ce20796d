"""Measure the time and memory to open a data set of a million samples, with text embeddings of dimension 4,096.

    python benchmarks/million_index.py [--shards N] [--folder DIR] [--json FILE]

The data set has 1,000 shards of 1,000 samples. Its indexes are complete, in the format of `imagen.data.shards.index`.
Tars and embeddings have realistic sizes (170 GB and 164 GB) but are sparse files: only their headers take disk space.
Opening is timed in a new process. Memory is measured in the trainer and in a forked worker after each has looked up
random samples: private, shared (PSS) and total (RSS). For comparison, it is also measured in a process and a worker
that have loaded the same libraries but no data. Linux only.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from measure import Clock, describe_machine, machine
from safetensors.numpy import save

from imagen.data.embed.sidecar import Embeddings, caption_hash, sidecar_path
from imagen.data.loading.order import Order
from imagen.data.shards.dataset import ShardedDataset
from imagen.data.shards.index import index_path
from imagen.errors import UserError, check_number
from imagen.files import write_json

SAMPLES = 1000  # per shard
IMAGE, CAPTION, TOKENS, WIDTH = 168_000, 60, 20, 4096  # bytes, bytes, and the shape of an embedding
RUN = 8  # consecutive samples of a look-up
MEMBERS = ("jpg", "json", "txt")  # as img2dataset writes them


class Text:
    encoder, revision, width, max_tokens, unconditional = "google/t5-v1_1-xxl", "main", WIDTH, 128, "zeros"


def make(folder: Path, shards: int) -> None:
    """Write the data set: complete indexes, and sparse tars and sidecars."""
    sizes = np.tile(np.array([IMAGE, 500, CAPTION], np.int64), SAMPLES)
    blocks = 512 + -(-sizes // 512) * 512
    ends = np.cumsum(blocks)
    tar_bytes = int(ends[-1]) + 1024
    sidecar = _embeddings()
    for shard in range(shards):
        tar = folder / f"{shard:05d}.tar"
        keys = [f"{shard:05d}{row:04d}".encode() for row in range(SAMPLES)]
        arrays = {
            "extension": np.tile(np.arange(3, dtype=np.int32), SAMPLES),
            "offset": ends - blocks + 512,
            "size": sizes,
            "first_member": np.arange(0, 3 * SAMPLES + 1, 3, dtype=np.int64),
            "key": np.frombuffer(b"".join(keys), np.uint8),
            "first_key_byte": np.arange(0, 9 * SAMPLES + 1, 9, dtype=np.int64),
        }
        metadata = {"format": "imagen-index-1", "samples": str(SAMPLES), "tar_bytes": str(tar_bytes)}
        index_path(tar).write_bytes(save(arrays, metadata | {"extensions": json.dumps(MEMBERS)}))
        _sparse(tar, b"", tar_bytes)
        _sparse(sidecar_path(tar, Text), *sidecar)


def _embeddings() -> tuple[bytes, int]:
    """Return the first bytes and the size of a sidecar; its tokens are a hole in the file."""
    hashes = np.full(SAMPLES, caption_hash(CAPTION * "\0"), np.uint64)
    offsets = np.arange(0, TOKENS * SAMPLES + 1, TOKENS, dtype=np.int64)
    parts = {
        "caption_hash": ("U64", [SAMPLES], hashes.nbytes),
        "offsets": ("I64", [SAMPLES + 1], offsets.nbytes),
        "tokens": ("U16", [TOKENS * SAMPLES, WIDTH], 2 * TOKENS * SAMPLES * WIDTH),
        "unconditional": ("U16", [1, WIDTH], 2 * WIDTH),
    }
    metadata = {"format": "imagen-text-1", "encoder": Text.encoder, "revision": Text.revision}
    header: dict[str, Any] = {"__metadata__": metadata | {"max_tokens": "128", "width": str(WIDTH)}}
    end = 0
    for name, (dtype, shape, size) in parts.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + hashes.tobytes() + offsets.tobytes(), 8 + len(text) + end


def _sparse(path: Path, start: bytes, size: int) -> None:
    """Write a sparse file of `size` bytes that begins with `start`."""
    with open(path, "wb") as file:
        file.write(start)
        file.truncate(size)


def memory() -> dict[str, float]:
    """Return the memory of this process in MB (10^6 bytes)."""
    kilobytes: dict[str, int] = {}
    for line in Path("/proc/self/smaps_rollup").read_text().splitlines()[1:]:
        name, value = line.split(":")
        kilobytes[name] = int(value.split()[0])
    private = kilobytes["Private_Clean"] + kilobytes["Private_Dirty"]
    return {"private": private * 1.024e-3, "pss": kilobytes["Pss"] * 1.024e-3, "rss": kilobytes["Rss"] * 1.024e-3}


def in_child(action: Callable[[], Any]) -> Any:
    """Run `action` in a forked process, and return its result."""
    read, write = os.pipe()
    if os.fork() == 0:
        status = 1
        try:
            os.write(write, json.dumps(action()).encode())
            status = 0
        finally:
            os._exit(status)
    os.close(write)
    with open(read, "rb") as file:
        found = file.read()
    if os.wait()[1] or not found:
        raise UserError("a measuring process failed; its error is above")
    return json.loads(found)


def look_up(dataset: ShardedDataset, embeddings: Embeddings, count: int) -> None:
    """Look up index entries, captions and embeddings as a loader does, for `count` samples all over an epoch."""
    order = Order(0, dataset.sizes, 4)
    for first in np.random.default_rng(0).integers(0, len(dataset), max(count // RUN, 1)).tolist():
        for position in range(first, first + RUN):
            i = order[position]
            dataset.key(i)
            dataset.extensions(i)
            embeddings.tokens(i, dataset.caption(i))


def measure(folder: Path, count: int) -> dict[str, Any]:
    """Return all measurements; call it in a process that has not opened the data set yet."""
    empty = memory()
    empty_worker = in_child(memory)
    index, text = Clock(), Clock()
    with text.running():
        with index.running():
            dataset = ShardedDataset(folder)
        embeddings = Embeddings(dataset, Text())
    after_open = memory()

    def worker() -> dict[str, Any]:
        before = memory()
        start = time.perf_counter()
        look_up(dataset, embeddings, count)
        return {"before": before, "after": memory(), "ms_a_sample": 1e3 * (time.perf_counter() - start) / count}

    found = in_child(worker)
    look_up(dataset, embeddings, count)
    return {
        "samples": len(dataset),
        "open_index": index.to_json(),
        "open_index_and_embeddings": text.to_json(),
        "empty_process": empty,
        "process_after_opening": after_open,
        "process_after_lookups": memory(),
        "empty_worker": empty_worker,
        "worker_before_lookups": found["before"],
        "worker_after_lookups": found["after"],
        "ms_a_lookup": found["ms_a_sample"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", type=int, default=1000, metavar="N", help="shards of 1,000 samples (default: 1000)")
    parser.add_argument("--lookups", type=int, default=4000, metavar="N", help="samples to look up (default: 4000)")
    parser.add_argument("--folder", type=Path, metavar="DIR", help="folder for the temporary shards")
    parser.add_argument("--json", type=Path, default=Path(__file__).with_suffix(".json"), metavar="FILE")
    options = parser.parse_args()
    check_number("--shards", options.shards, least=1)
    check_number("--lookups", options.lookups, least=1)
    if not Path("/proc/self/smaps_rollup").exists():
        raise UserError("this system does not report the memory of a process (/proc/self/smaps_rollup is missing)")
    facts = machine()
    print(describe_machine(facts))
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        make(Path(folder), options.shards)
        found = in_child(lambda: measure(Path(folder), options.lookups))
    print(f"\n{found['samples']:,} samples in {options.shards:,} shards")
    for name in ("open_index", "open_index_and_embeddings"):
        clock = found[name]
        print(f"{name.replace('_', ' ')}: {clock['median_wall_s']:.3f} s ({clock['median_cpu_s']:.3f} s of CPU time)")
    print(f"{found['ms_a_lookup']:.2f} ms per look-up")
    print(f"\n{'MB':<28}{'private':>9}{'PSS':>9}{'RSS':>9}")
    for name, values in found.items():
        if isinstance(values, dict) and "pss" in values:
            numbers = "".join(f"{values[kind]:>9.1f}" for kind in ("private", "pss", "rss"))
            print(f"{name.replace('_', ' '):<28}{numbers}")
    write_json(options.json, {"machine": facts, **found})
    print(f"\nwrote {options.json}")


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        print(f"million_index: {error}", file=sys.stderr)
        sys.exit(2)
