"""Pictures to a folder: NNNN.png, each with what it takes to make it again, and a contact sheet.

A job is a pure function of its request: it may be stopped and run again, on any number of ranks, and gives the same
pictures. Batches are those of the request, whoever computes them; one that is there in part is computed whole again.
"""

from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

from PIL import Image

from imagen.cascade.cascade import Cascade
from imagen.cascade.plan import Plan
from imagen.diffusion.noise import Variation
from imagen.errors import UserError, shown
from imagen.pictures import contact_sheet, read_metadata, read_picture, write_png

SHEET_PICTURES = 256  # a sheet of more would be too large to look at
MOST_PICTURES = 1_000_000  # of one command
CAPTION = 300  # characters of it on a sheet
WAITING = 16  # pictures that wait to be written, before drawing does
DECIDES = (
    *("prompt", "negative", "seed", "variation", "size", "start", "init", "masks", "strength", "tiles"),
    *("precision", "noise", "text", "stages"),
)


def write_samples(
    cascade: Cascade,
    prompts: Sequence[str],
    out: str | Path,
    *,
    seed: int | Sequence[int] = 0,
    n: int = 1,
    vary: float | None = None,
    negative: str | Sequence[str] = "",
    start: Sequence[Image.Image] | None = None,
    rank: int = 0,
    ranks: int = 1,
    progress: bool = True,
    **request: Any,
) -> list[Path]:
    """Write `n` pictures of each prompt to `out`, and `sheet.png`; return the pictures' paths.

    Files are numbered prompt by prompt: picture j of prompt i is number i n + j, and has the seed `seed` + j (`seed`
    may be one for each prompt). With `vary` it has the noise of `seed`, mixed in this amount (0 to 1) with that of
    `seed` + j. `negative` and `start` have one a prompt. `request` is what else `Cascade.sample` takes.

    Rank r of `ranks` makes every ranks-th batch from the r-th on; ranks need not know of each other.

    Pictures that are there already, made by the same request, are kept: calling again after an interruption goes on.
    Raises UserError, and changes nothing, if one is there that this request would not make.
    """
    if n < 1:
        raise UserError(f"n is {n}; it must be 1 or more")
    check_pictures(n, len(prompts))
    seeds = [seed] * len(prompts) if isinstance(seed, int) else list(seed)
    plan = cascade.plan(
        _times(prompts, n),
        seeds=[_seed(first, j, vary) for first in seeds for j in range(n)],
        negative=negative if isinstance(negative, str) else _times(negative, n),
        start=None if start is None else _times(start, n),
        **request,
    )
    paths = [path_of(out, number) for number in range(len(plan.prompts))]
    make_folder(out)
    write_plan(cascade, plan, paths, rank=rank, ranks=ranks, progress=progress)
    write_sheet(out, paths, [_caption(plan, i, n) for i in range(min(len(paths), SHEET_PICTURES))], n)
    return paths


def write_plan(
    cascade: Cascade, plan: Plan, paths: Sequence[Path], *, rank: int = 0, ranks: int = 1, progress: bool = True
) -> None:
    """The plan's pictures to `paths`, or a rank's share of them. Keeps what is there; see `write_samples`."""
    missing: dict[range, list[int]] = {}
    for batch in plan.batches()[rank::ranks]:
        absent = [number for number in batch if not _kept(paths[number], cascade.metadata(plan, number))]
        if absent:
            missing[batch] = absent
    if not missing:
        return
    # Closed at once, so that the bars end before an error is told. Files are compressed while the next are drawn.
    with ThreadPoolExecutor(1) as writer, closing(cascade.run(plan, missing, progress=progress)) as images:
        writing: deque[Future[None]] = deque()
        for batch, absent in missing.items():
            for number, image in zip(batch, images, strict=False):
                if number in absent:
                    made = {**cascade.metadata(plan, number), "conditions": cascade.conditions(plan, number)}
                    writing.append(writer.submit(write_png, paths[number], image, made))
                while len(writing) > WAITING:
                    writing.popleft().result()
        for written in writing:
            written.result()


def write_again(cascade: Cascade, plan: Plan, place: int, out: str | Path, *, progress: bool = True) -> Path:
    """Picture number `place` of a plan of one batch, as 0000.png; see `plan_again`. Keeps one that is there."""
    path = path_of(out, 0)
    make_folder(out)
    if not _kept(path, cascade.metadata(plan, place)):
        image = list(cascade.run(plan, progress=progress))[place]
        made = {**cascade.metadata(plan, place), "conditions": cascade.conditions(plan, place)}
        write_png(path, image, made)
    write_sheet(out, [path], [plan.prompts[place]])
    return path


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


def _times(values: Sequence[Any], n: int) -> list[Any]:
    return [value for value in values for _ in range(n)]


def _seed(first: int, j: int, vary: float | None) -> int | Variation:
    if vary is None:
        return first + j
    return Variation(first, first + j, vary) if j else first


def _caption(plan: Plan, picture: int, n: int) -> str:
    seed, prompt = plan.seeds[picture], plan.prompts[picture]
    if len(prompt) > CAPTION:
        prompt = f"{prompt[:CAPTION]}..."
    if n == 1:
        return prompt
    said = f"{seed.seed} and {seed.other}" if isinstance(seed, Variation) else str(seed)
    return f"{prompt} · seed {said}"


def _kept(path: Path, wanted: dict[str, Any]) -> bool:
    """Whether the wanted picture is at `path`. Raises UserError if it is another."""
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
