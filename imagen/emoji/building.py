"""Building a data set of drawings: splits of pictures, rendered by several processes, into shards."""

import multiprocessing
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from operator import methodcaller
from pathlib import Path
from typing import Any, Protocol

from imagen.errors import UserError
from imagen.files import read_json, write_json
from imagen.progress import progress_bar

_UNFINISHED = ".unfinished"  # a file beside the splits while they are being built


class Drawable(Protocol):
    def sample(self, sizes: Sequence[int], /) -> dict[str, Any]:
        """The members of a shard's sample: a master `SIZE.png` for each of `sizes`, a caption, a description."""


def finished_build(out: Path, arguments: dict[str, Any]) -> dict[str, Any] | None:
    """The description of the finished build in `out`, if there is one. UserError if it is another build."""
    if not (out / "dataset.json").exists():
        return None
    description = read_json(out / "dataset.json")
    if not isinstance(description, dict) or description.get("arguments") != arguments:
        raise UserError(f"{out} holds a data set built with other arguments; choose another folder or delete it")
    return description


def write_splits(
    out: Path,
    arguments: dict[str, Any],
    splits: Mapping[str, Sequence[Drawable]],
    sizes: Sequence[int],
    description: Mapping[str, Any],
    *,
    workers: int | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Render `splits` into `out`/NAME and write `out`/dataset.json; return what it says.

    That is `description`, the arguments and the number of samples of each split. A build that was killed starts
    again. workers: processes; None: one for each core, at most 16. UserError if `out` holds anything else.
    """
    from imagen.data.shards.writer import ShardWriter  # heavy, and the processes below do without

    _start(out, arguments, splits)
    written = {}
    with progress_bar(total=sum(map(len, splits.values())), unit="picture", desc="emoji", disable=not progress) as bar:
        for name, split in splits.items():
            with ShardWriter(out / name) as writer:
                for sample in _render_all(split, sizes, workers):
                    writer.write(sample)
                    bar.update()
            written[name] = len(split)
    whole = {**description, "arguments": arguments, "samples": written}
    write_json(out / "dataset.json", whole)
    (out / _UNFINISHED).unlink()  # dataset.json decides; this only tidies up
    return whole


def _start(out: Path, arguments: dict[str, Any], splits: Mapping[str, Any]) -> None:
    """Mark `out` as being built; clear what a killed build left there. UserError if it holds anything else."""
    if (out / _UNFINISHED).exists():
        for split in splits:
            shutil.rmtree(out / split, ignore_errors=True)
    elif out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} is not an empty folder; choose another one")
    write_json(out / _UNFINISHED, arguments)


def _render_all(pictures: Sequence[Drawable], sizes: Sequence[int], workers: int | None) -> Iterator[dict[str, Any]]:
    """The samples, in order."""
    workers = workers or min(os.cpu_count() or 1, 16)
    render = methodcaller("sample", sizes)
    if workers == 1 or len(pictures) < 32:
        yield from map(render, pictures)
        return
    # spawn: forking a process that has run torch can hang. The rasteriser holds the GIL, so threads gain nothing.
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"))
    try:
        yield from pool.map(render, pictures, chunksize=16)
    finally:
        pool.shutdown(cancel_futures=True)
