"""Images to a folder: NNNN.png with provenance, and a contact sheet.

A job is a pure function of its request: it may be stopped and run again, on any number of ranks, and gives the same
images. Batches are those of the request on every rank; a batch of which only a part exists is computed whole again.
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
from imagen.pictures import contact_sheet, read_metadata, read_picture, write_png

T = TypeVar("T")
SHEET_PICTURES = 256  # a sheet of more would be too large to look at
MOST_PICTURES = 1_000_000  # of one command
CAPTION = 300  # characters of it on a sheet
WAITING = 16  # pictures that wait to be written, before drawing does
DECIDES = (
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

    Files are numbered prompt by prompt: image j of prompt i is number i n + j, and has the seed `seed` + j (`seed`
    may be one for each prompt). With `vary` it has the noise of `seed`, mixed in this amount (0 to 1) with that of
    `seed` + j. `negative` and `start` have one per prompt.

    Rank r of `ranks` makes every ranks-th batch from the r-th on; ranks do not communicate.

    Existing images of the same request are kept: calling again after an interruption resumes.
    Raises UserError, and changes nothing, if an existing file is an image of another request.
    """
    if n < 1:
        raise UserError(f"n is {n}; it must be 1 or more")
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
    paths = [path_of(out, number) for number in range(len(request.prompts))]
    make_folder(out)
    write_request(cascade, request, paths, rank=rank, ranks=ranks, progress=progress)
    write_sheet(out, paths, [_caption(request, i, n) for i in range(min(len(paths), SHEET_PICTURES))], n)
    return paths


def write_request(
    cascade: Cascade, request: Request, paths: Sequence[Path], *, rank: int = 0, ranks: int = 1, progress: bool = True
) -> None:
    """Write the images of a request to `paths`, or a rank's share of them; see `write_samples`."""
    missing: dict[range, list[int]] = {}
    for batch in request.batches()[rank::ranks]:
        absent = [number for number in batch if not _exists(paths[number], cascade.metadata(request, number))]
        if absent:
            missing[batch] = absent
    if not missing:
        return
    # Closed at once, so that the bars end before an error is printed. Files are compressed while the next are sampled.
    with ThreadPoolExecutor(1) as writer, closing(cascade.run(request, missing, progress=progress)) as images:
        writing: deque[Future[None]] = deque()
        for batch, absent in missing.items():
            for number, image in zip(batch, images, strict=False):
                if number in absent:
                    writing.append(writer.submit(write_png, paths[number], image, _metadata(cascade, request, number)))
                while len(writing) > WAITING:
                    writing.popleft().result()
        for written in writing:
            written.result()


def write_regenerated(
    cascade: Cascade, request: Request, place: int, out: str | Path, *, progress: bool = True
) -> Path:
    """Write image number `place` of a `regenerate_request` as 0000.png; an existing one is kept. Return its path."""
    path = path_of(out, 0)
    make_folder(out)
    if not _exists(path, cascade.metadata(request, place)):
        image = list(cascade.run(request, progress=progress))[place]
        write_png(path, image, _metadata(cascade, request, place))
    write_sheet(out, [path], [_caption(request, place, 1)])
    return path


def _metadata(cascade: Cascade, request: Request, number: int) -> dict[str, Any]:
    return {**cascade.metadata(request, number), "conditions": cascade.conditions(request, number)}


def write_sheet(out: str | Path, paths: Sequence[Path], captions: Sequence[str], n: int = 1) -> None:
    """`sheet.png` of the first pictures, unless another rank is still at work on them."""
    shown = paths[: len(captions)]
    if all(path.exists() for path in shown):
        columns = n if 1 < n <= 8 else None
        write_png(Path(out) / "sheet.png", contact_sheet([read_picture(path) for path in shown], captions, columns))


def check_pictures(n: int, count: int) -> None:
    """UserError if `n` pictures of each of `count` are more than one command makes."""
    if n * count > MOST_PICTURES:
        raise UserError(
            f"{shown(n)} pictures of each of {shown(count)} are {shown(n * count)}; one command makes at most "
            f"{MOST_PICTURES:,}: use several, with other seeds and folders"
        )


def path_of(out: str | Path, number: int) -> Path:
    return Path(out) / f"{number:04d}.png"


def make_folder(out: str | Path) -> None:
    """Now, not after the first batch. Raises UserError if it cannot be made."""
    try:
        Path(out).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make the folder {out}: {error.strerror}; choose another") from None


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


def _exists(path: Path, wanted: dict[str, Any]) -> bool:
    """Whether the wanted image is at `path`. Raises UserError if another file is."""
    if not path.exists():
        return False
    found = read_metadata(path)
    if found is None:
        raise UserError(f"{path} is there already and says nothing of how it was made; choose another folder")
    for key in DECIDES:
        if found.get(key) != wanted.get(key):
            raise UserError(
                f"{path} is there already, made with another {key}{_both(found.get(key), wanted.get(key))}; "
                "choose another folder, or remove it"
            )
    return True


def _both(found: Any, wanted: Any) -> str:
    """The two values where they are short enough to help."""
    return f" ({found!r}, not {wanted!r})" if len(repr(found)) + len(repr(wanted)) < 120 else ""
