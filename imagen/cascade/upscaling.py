"""Upsample image files of any size with the super-resolution stages."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

from typing_extensions import Unpack

from imagen.cascade.cascade import Cascade
from imagen.cascade.lazy_images import LazyImages
from imagen.cascade.options import DEFAULTS, JobOptions, Prompt, takes_options
from imagen.cascade.output import (
    SHEET_PICTURES,
    check_pictures,
    check_sheet,
    make_folder,
    missing_images,
    path_of,
    write_request,
    write_sheet,
)
from imagen.cascade.request import Request
from imagen.pictures import read_picture


@takes_options(JobOptions)
def write_upscaled(
    cascade: Cascade,
    pictures: Sequence[str | Path],
    out: str | Path,
    *,
    prompt: Prompt = "",
    seed: int = 0,
    n: int = 1,
    rank: int = 0,
    ranks: int = 1,
    progress: bool = True,
    **options: Unpack[JobOptions],
) -> list[Path]:
    """Upsample image files: `n` results of each, numbered as in `write_samples`, with seeds `seed`, `seed` + 1, ...

    Images are padded to a size that the stages accept, and the results are cropped. Consecutive images of equal size
    share a batch. All files are read, and all requests checked, before the first is upsampled. prompt: of all images.

    Raises UserError for a file that is not an image, and as `write_samples` does.
    """
    batch_size: int = options.get("batch_size", DEFAULTS["batch_size"])
    check_pictures(n, len(pictures))
    sizes = [read_picture(picture).size for picture in pictures]
    paths = [path_of(out, number) for number in range(len(pictures) * n)]
    check_sheet(out, paths)
    groups = list(_groups(sizes, max(batch_size // n, 1)))
    read = lru_cache(maxsize=1)(read_picture)  # the `n` results of an image are consecutive

    def start_of(group: range) -> LazyImages:
        return LazyImages(len(group) * n, sizes[group.start], lambda i: read(pictures[group[i // n]]))

    requests: dict[tuple[tuple[int, int], int], Request] = {}  # by size and number of images
    for group in groups:
        size, count = sizes[group.start], len(group) * n
        if (size, count) not in requests:
            options["batch_size"] = count if batch_size >= n else batch_size
            requests[size, count] = cascade.request(
                [prompt] * count,
                seeds=[seed + j for _ in group for j in range(n)],
                start=start_of(group),
                **options,
            )

    def request_of(group: range) -> Request:
        return replace(requests[sizes[group.start], len(group) * n], start=start_of(group))

    def paths_of(group: range) -> list[Path]:
        return paths[group.start * n : group.stop * n]

    mine = [group for group in groups[rank::ranks] if missing_images(cascade, request_of(group), paths_of(group))]
    make_folder(out)
    for group in mine:
        write_request(cascade, request_of(group), paths_of(group), progress=progress)
    captions = [f"{Path(pictures[i // n]).name}" for i in range(min(len(paths), SHEET_PICTURES))]
    write_sheet(out, paths, captions, n)
    return paths


def _groups(sizes: Sequence[tuple[int, int]], most: int) -> Iterator[range]:
    """Yield runs of consecutive images of equal size, at most `most` images each."""
    begin = 0
    for number in range(1, len(sizes) + 1):
        if number == len(sizes) or sizes[number] != sizes[begin] or number - begin == most:
            yield range(begin, number)
            begin = number
