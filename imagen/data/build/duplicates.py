"""Drop exact duplicates: among samples with equal pixels, only the first in the order of the parts remains.

The others are removed from the index, and from the sidecar if the build wrote one, but not from their tars.
"""

import tarfile
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from imagen.data.build.parts import BuildConfig, PartFiles, write_lines
from imagen.data.embed.sidecar import sidecar_path, write_sidecar
from imagen.data.shards.index import index_shard, tar_keys
from imagen.data.shards.mapped import MappedTensors


def drop_duplicates(config: BuildConfig, parts: list[PartFiles], reports: list[dict[str, Any]]) -> tuple[int, int]:
    """Remove duplicates from the indexes and write `NAME.duplicates.jsonl` beside each part's report.

    Depends only on the parts, so it may be killed and run again. Returns the numbers of samples and captions removed.
    """
    # Per part: uint64 [samples, 3], the columns are hash, row, captions.
    tables = [np.load(files.path("hashes.npy"), allow_pickle=False) for files in parts]
    starts = np.cumsum([0, *map(len, tables)])
    first = _first_copies(np.concatenate([table[:, 0] for table in tables]) if tables else np.empty(0, np.uint64))
    # Cache a few parts: duplicates are often close together.
    keys_of = lru_cache(16)(
        lambda part: [(tar, key) for tar in parts[part].tars(reports[part]) for key in tar_keys(tar)]
    )

    def sample(i: int) -> tuple[Path, str]:
        part = int(np.searchsorted(starts, i, side="right")) - 1
        return keys_of(part)[int(tables[part][i - starts[part], 1])]

    dropped = captions = 0
    for part, files in enumerate(parts):
        mine = first[starts[part] : starts[part + 1]]
        later = np.flatnonzero(mine != np.arange(starts[part], starts[part + 1]))
        listed = files.path("duplicates.jsonl")
        if len(later) == 0 and not listed.exists():
            continue
        rows = []
        for j in later.tolist():
            (tar, key), (first_tar, first_key) = sample(int(starts[part]) + j), sample(int(mine[j]))
            detail = f"the same pixels as {first_key} in {first_tar.name}"
            rows.append({"key": key, "origin": tar.name, "reason": "duplicate", "detail": detail})
        if rows:  # before the index: after a kill, a part with this file is processed again
            write_lines(listed, rows)
        good = np.setdiff1d(tables[part][:, 1], tables[part][later, 1])
        kept = {keys_of(part)[row] for row in good.tolist()}
        for tar in files.tars(reports[part]):
            _keep(config, tar, {key for t, key in kept if t == tar})
        if not rows:
            listed.unlink()
        dropped += len(rows)
        captions += (
            int(tables[part][later, 2].sum()) if tables[part].shape[1] > 2 else len(rows)
        )  # an older version wrote 2 columns
    return dropped, captions


def _first_copies(hashes: np.ndarray) -> np.ndarray:
    """Return for each sample the index of the first one with the same hash, int64 [N]."""
    order = np.argsort(hashes, kind="stable")
    is_first = np.ones(len(hashes), bool)
    is_first[1:] = hashes[order][1:] != hashes[order][:-1]
    first = np.empty(len(hashes), np.int64)
    first[order] = order[is_first][np.cumsum(is_first) - 1]
    return first


def _keep(config: BuildConfig, tar: Path, keys: set[str]) -> None:
    """Reduce a shard's index and sidecar to the samples with these keys."""
    everything = tar_keys(tar)
    index_shard(tar, keep=keys)
    if config.text is None:
        return
    sidecar = MappedTensors(sidecar_path(tar, config.text), remedy="delete the folder and build again")
    offsets = sidecar["offsets"].tolist()
    if len(offsets) - 1 != len(everything):  # an interrupted run has already reduced it
        return
    bits = [sidecar["tokens"][offsets[row] : offsets[row + 1]] for row, key in enumerate(everything) if key in keys]
    with tarfile.open(tar, "r:") as archive:
        texts = {info.name: archive.extractfile(info).read() for info in archive if info.name.endswith(".txt")}  # type: ignore[union-attr]
    captions = [[texts[f"{key}.txt"].decode()] for key in everything if key in keys]
    write_sidecar(tar, config.text, captions, bits, np.array(sidecar["unconditional"]))
