"""Build a data set of several splits: render each with several processes and write it to shards."""

import multiprocessing
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from operator import methodcaller
from pathlib import Path
from typing import Any, Protocol

from imagen.errors import UserError
from imagen.files import LOCK, locked, read_json, write_json
from imagen.progress import progress_bar

_UNFINISHED = ".unfinished"  # marker file that exists during a build


class Drawable(Protocol):
    """An image that can be rendered at several sizes."""

    def sample(self, sizes: Sequence[int], /) -> dict[str, Any]:
        """Return a sample for a shard: a master `SIZE.png` for each of `sizes`, a caption and a description."""


def finished_build(out: Path, arguments: dict[str, Any]) -> dict[str, Any] | None:
    """Return the description of the finished build in `out`, or None if there is none.

    Raises UserError if the build has other arguments.
    """
    if not (out / "dataset.json").exists():
        return None
    description = read_json(out / "dataset.json")
    if not isinstance(description, dict) or description.get("arguments") != arguments:
        raise UserError(f"{out} contains a data set built with other arguments; choose another folder or delete it")
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
    name: str = "emoji",
) -> dict[str, Any]:
    """Render `splits` into `out`/NAME; write and return `out`/dataset.json.

    dataset.json contains `description`, the arguments, the number of samples per split, and the words of the training
    captions. A killed build starts over.
    workers: number of processes; None: one per core, at most 16. name: label of the progress bar.
    Raises UserError if `out` contains other files, or another process is building it.
    """
    from imagen.data.shards.writer import ShardWriter  # slow to import, and workers do not need it
    from imagen.text.vocabulary import caption_words

    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is not an empty folder; choose an empty or new one")
    written, captions = {}, set()
    with (
        locked(out, f"another process is building {out}; wait for it"),
        progress_bar(total=sum(map(len, splits.values())), unit="image", desc=name, disable=not progress) as bar,
    ):
        _start(out, arguments, splits)
        for folder, split in splits.items():
            with ShardWriter(out / folder) as writer:
                for sample in _render_all(split, sizes, workers):
                    writer.write(sample)
                    if folder == "train":
                        captions.add(sample["txt"].decode())
                    bar.update()
            written[folder] = len(split)
        words = sorted(caption_words(captions))
        complete = {**description, "arguments": arguments, "samples": written, "words": words}
        write_json(out / "dataset.json", complete)
        (out / _UNFINISHED).unlink()  # dataset.json marks a finished build
    return complete


def _start(out: Path, arguments: dict[str, Any], splits: Mapping[str, Any]) -> None:
    """Mark `out` as unfinished and delete the output of a killed build.

    Raises UserError if `out` contains other files.
    """
    if (out / _UNFINISHED).exists():
        for split in splits:
            shutil.rmtree(out / split, ignore_errors=True)
    elif any(path.name != LOCK for path in out.iterdir()):
        raise UserError(f"{out} is not an empty folder; choose an empty or new one")
    write_json(out / _UNFINISHED, arguments)


def _render_all(images: Sequence[Drawable], sizes: Sequence[int], workers: int | None) -> Iterator[dict[str, Any]]:
    """Yield the rendered samples in the order of `images`."""
    workers = workers or min(os.cpu_count() or 1, 16)
    render = methodcaller("sample", sizes)
    if workers == 1 or len(images) < 32:
        yield from map(render, images)
        return
    # spawn: forking a process that has run torch can hang. Threads would not help: the rasteriser holds the GIL.
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"))
    try:
        yield from pool.map(render, images, chunksize=16)
    finally:
        pool.shutdown(cancel_futures=True)
