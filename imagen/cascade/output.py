"""Write images to a folder: NNNN.png with provenance, and a contact sheet.

The images are a pure function of the request. A job that is interrupted and run again, on any number of ranks, writes
the same images. All ranks use the batches of the request; an incomplete batch is computed again as a whole.
"""

from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any, TypeVar

from PIL import Image
from torch import Tensor
from typing_extensions import Unpack

from imagen.cascade.cascade import Cascade
from imagen.cascade.options import JobOptions, PerImage, Prompt, takes_options
from imagen.cascade.prompts import as_prompts
from imagen.cascade.request import Request
from imagen.diffusion.noise import Variation
from imagen.errors import UserError, shown
from imagen.files import check_replaceable
from imagen.pictures import contact_sheet, read_metadata, read_picture, write_png

T = TypeVar("T")
SHEET = "sheet.png"
SHEET_MARK = {"contact_sheet": True}  # metadata of sheets; none in those of early versions
SHEET_PICTURES = 256  # images on a sheet
MOST_PICTURES = 1_000_000  # images per command
CAPTION = 300  # characters per caption on a sheet
WRITE_QUEUE = 16  # images waiting to be written; sampling pauses beyond it
IDENTIFYING = (  # fields of the provenance that must agree with an existing file
    *(
        "prompt",
        "negative",
        "embedding",
        "negative_embedding",
        "seed",
        "variation",
        "size",
        "start",
        "init",
        "masks",
        "strength",
        "tiles",
    ),
    *("precision", "noise", "lora", "text", "stages"),
)


@takes_options(JobOptions)
def write_samples(
    cascade: Cascade,
    prompts: Prompt | Sequence[Prompt],
    out: str | Path,
    *,
    seed: int | Sequence[int] = 0,
    n: int = 1,
    vary: float | None = None,
    negative: PerImage[Prompt] = "",
    start: Sequence[Image.Image] | None = None,
    rank: int = 0,
    ranks: int = 1,
    progress: bool = True,
    **options: Unpack[JobOptions],
) -> list[Path]:
    """Write `n` images of each prompt to `out`, and `sheet.png`; return the images' paths.

    Image j of prompt i is number i n + j and has the seed `seed` + j; `seed` may be a list with one per prompt.
    vary: 0 to 1; images are variations, with the noise of `seed` interpolated by this amount towards `seed` + j.
    negative, start: one per prompt.
    rank, ranks: rank r samples batches r, r + ranks, ...; ranks do not communicate.

    Existing images of the same request are not sampled again, so calling again after an interruption resumes.
    Raises UserError, before writing anything, if an existing file is an image of another request, or if `sheet.png` is
    not a sheet of this function.
    """
    prompts = as_prompts(prompts)
    check_pictures(n, len(prompts))
    seeds = [seed] * len(prompts) if isinstance(seed, int) else list(seed)
    request = cascade.request(
        _times(prompts, n),
        seeds=[_seed(first, j, vary) for first in seeds for j in range(n)],
        negative=negative if isinstance(negative, str | Tensor) else _times(negative, n),
        start=None if start is None else _times(start, n),
        **options,
    )
    if rank == 0:
        cascade.warn(request)
    paths = [path_of(out, number) for number in range(len(request.prompts))]
    check_sheet(out, paths)
    make_folder(out)
    write_request(cascade, request, paths, rank=rank, ranks=ranks, progress=progress)
    write_sheet(out, paths, [_caption(request, i, n) for i in range(min(len(paths), SHEET_PICTURES))], n)
    return paths


def write_request(
    cascade: Cascade, request: Request, paths: Sequence[Path], *, rank: int = 0, ranks: int = 1, progress: bool = True
) -> None:
    """Write the images of a request, or a rank's share of them, to `paths`; see `write_samples`."""
    missing = missing_images(cascade, request, paths, rank=rank, ranks=ranks)
    if not missing:
        return
    # `closing` ends the progress bars before an error is printed. The thread compresses files while sampling continues.
    with ThreadPoolExecutor(1) as writer, closing(cascade.run(request, missing, progress=progress)) as images:
        writing: deque[Future[None]] = deque()
        for batch, absent in missing.items():
            for number, image in zip(batch, images, strict=False):
                if number in absent:
                    writing.append(writer.submit(write_png, paths[number], image, _metadata(cascade, request, number)))
                while len(writing) > WRITE_QUEUE:
                    writing.popleft().result()
        for written in writing:
            written.result()


def missing_images(
    cascade: Cascade, request: Request, paths: Sequence[Path], *, rank: int = 0, ranks: int = 1
) -> dict[range, list[int]]:
    """Return a rank's batches that are incomplete, and the missing images of each.

    Raises UserError if an existing file is not the image of the request.
    """
    absent = {
        batch: [number for number in batch if not _exists(paths[number], cascade, request, number)]
        for batch in request.batches()[rank::ranks]
    }
    return {batch: numbers for batch, numbers in absent.items() if numbers}


def write_regenerated(
    cascade: Cascade, request: Request, number: int, out: str | Path, *, progress: bool = True
) -> Path:
    """Write image `number` of a `regenerate_request` as 0000.png, unless it exists. Return its path."""
    path = path_of(out, 0)
    check_sheet(out, [path])
    make_folder(out)
    if not _exists(path, cascade, request, number):
        image = list(cascade.run(request, progress=progress))[number]
        write_png(path, image, _metadata(cascade, request, number))
        write_sheet(out, [path], [_caption(request, number, 1)])
    return path


def _metadata(cascade: Cascade, request: Request, number: int) -> dict[str, Any]:
    return {**cascade.metadata(request, number), "conditions": cascade.conditions(request, number)}


def write_sheet(out: str | Path, paths: Sequence[Path], captions: Sequence[str], n: int = 1) -> None:
    """Write `sheet.png` of the first images, unless another rank has yet to write some of them."""
    shown = paths[: len(captions)]
    if all(path.exists() for path in shown):
        columns = n if 1 < n <= 8 else None
        sheet = contact_sheet([read_picture(path) for path in shown], captions, columns)
        write_png(Path(out) / SHEET, sheet, SHEET_MARK)


def check_sheet(out: str | Path, paths: Sequence[Path]) -> None:
    """Raise UserError if `sheet.png` is not a contact sheet that `write_sheet` wrote.

    Accepts one without a mark beside images of `imagen`, because early versions wrote no mark.
    """
    if not any(path.exists() and read_metadata(path) is not None for path in paths[:SHEET_PICTURES]):
        mark = b'"contact_sheet":'
        check_replaceable(Path(out) / SHEET, mark, "a contact sheet of imagen", "move it, or choose another folder")


def check_pictures(n: int, count: int) -> None:
    """Raise UserError if `n` is below 1, or `n` images for each of `count` inputs exceed the limit of one command."""
    if n < 1:
        raise UserError(f"n is {n}; it must be 1 or more")
    if n * count > MOST_PICTURES:
        raise UserError(
            f"{shown(n)} x {shown(count)} = {shown(n * count)} images; one command samples at most {MOST_PICTURES:,}: "
            "use several, with different seeds and folders"
        )


def path_of(out: str | Path, number: int) -> Path:
    return Path(out) / f"{number:04d}.png"


def make_folder(out: str | Path) -> None:
    """Create the output folder before the first batch is sampled. Raises UserError if that fails."""
    try:
        Path(out).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot create the folder {out}: {error.strerror}; choose another") from None


def _times(values: Sequence[T], n: int) -> list[T]:
    return [value for value in values for _ in range(n)]


def _seed(first: int, j: int, vary: float | None) -> int | Variation:
    if vary is None:
        return first + j
    return Variation(first, first + j, vary) if j else first


def _caption(request: Request, number: int, n: int) -> str:
    seed, prompt = request.seeds[number], request.prompts[number]
    text = prompt if isinstance(prompt, str) else "(an embedding)"
    if len(text) > CAPTION:
        text = f"{text[:CAPTION]}..."
    if n == 1:
        return text
    seeds = f"{seed.seed} and {seed.other}" if isinstance(seed, Variation) else str(seed)
    return f"{text} · seed {seeds}"


def _exists(path: Path, cascade: Cascade, request: Request, number: int) -> bool:
    """Return whether image `number` of a request is at `path`. Raises UserError if another file is there."""
    if not path.exists():
        return False
    found, wanted = read_metadata(path), cascade.metadata(request, number)
    if found is None:
        raise UserError(f"{path} already exists and has no imagen metadata; choose another folder")
    for key in IDENTIFYING:
        if (before := found.get(key)) != (now := wanted.get(key)):
            other = _other_stages(before, now) if key == "stages" else f"another {key}{_both(before, now)}"
            raise UserError(f"{path} already exists, made with {other}; choose another folder, or remove it")
    return True


def _other_stages(found: Any, wanted: Any) -> str:
    """Describe the first difference of two lists of stages; the first is from a file, and may be anything."""
    if not isinstance(found, list) or not all(
        isinstance(each, dict) and isinstance(each.get("sampling"), dict) for each in found
    ):
        return "other stages"
    names = [[each.get("resolution") for each in stages] for stages in (found, wanted)]
    if names[0] != names[1]:
        return f"other stages{_both(*names)}"
    for before, now in zip(found, wanted, strict=True):
        stage = f"stage {now['resolution']}"
        if before.get("weights") != now["weights"]:
            return f"other weights of {stage}"
        for name, value in now["sampling"].items():
            if (other := before["sampling"].get(name)) != value:
                return f"another setting {name} of {stage}{_both(other, value)}"
    return "other settings"


def _both(found: Any, wanted: Any) -> str:
    """Return the two values if they are short enough for an error message, else ""."""
    return f" ({found!r}, not {wanted!r})" if len(repr(found)) + len(repr(wanted)) < 120 else ""
