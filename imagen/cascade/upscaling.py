"""Files of any size through the super-resolution stages."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from imagen.cascade.cascade import Cascade
from imagen.cascade.output import SHEET_PICTURES, check_pictures, make_folder, path_of, write_plan, write_sheet
from imagen.pictures import read_picture


def write_upscaled(
    cascade: Cascade,
    pictures: Sequence[str | Path],
    out: str | Path,
    *,
    prompt: str = "",
    seed: int = 0,
    n: int = 1,
    batch_size: int = 8,
    rank: int = 0,
    ranks: int = 1,
    progress: bool = True,
    **request: Any,
) -> list[Path]:
    """Enlarge files: `n` of each, numbered as in `write_samples`, with the seeds `seed`, `seed` + 1, ...

    Pictures of any size: they are padded to what the stages take, and the result is cropped. Neighbours of one size
    share a batch. All files are read before the first is enlarged.

    Raises UserError for a file that is no picture, and as `write_samples` does.
    """
    check_pictures(n, len(pictures))
    sizes = [read_picture(picture).size for picture in pictures]
    paths = [path_of(out, number) for number in range(len(pictures) * n)]
    groups = list(_groups(sizes, max(batch_size // n, 1)))
    for group in groups[rank::ranks]:
        images = [read_picture(pictures[number]) for number in group for _ in range(n)]
        plan = cascade.plan(
            [prompt] * len(images),
            seeds=[seed + j for _ in group for j in range(n)],
            start=images,
            batch_size=len(images) if batch_size >= n else batch_size,
            **request,
        )
        make_folder(out)
        write_plan(cascade, plan, paths[group.start * n : group.stop * n], progress=progress)
    captions = [f"{Path(pictures[i // n]).name}" for i in range(min(len(paths), SHEET_PICTURES))]
    write_sheet(out, paths, captions, n)
    return paths


def _groups(sizes: Sequence[tuple[int, int]], most: int) -> Iterator[range]:
    """Neighbours of one size, so many at a time."""
    begin = 0
    for number in range(1, len(sizes) + 1):
        if number == len(sizes) or sizes[number] != sizes[begin] or number - begin == most:
            yield range(begin, number)
            begin = number
