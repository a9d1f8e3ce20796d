"""Pictures to a folder: NNNN.png, each with what it takes to make it again, and a contact sheet."""

from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from PIL import Image

from imagen.cascade.cascade import Cascade
from imagen.errors import UserError
from imagen.pictures import contact_sheet, read_metadata, read_picture, write_png

SHEET_PICTURES = 256  # a sheet of more would be too large to look at


def write_samples(
    cascade: Cascade,
    prompts: Sequence[str],
    out: str | Path,
    *,
    seed: int = 0,
    n: int = 1,
    start: Sequence[Image.Image] | None = None,
    progress: bool = True,
    **request: Any,
) -> list[Path]:
    """Write `n` pictures of each prompt to `out`, and `sheet.png`; return the pictures' paths.

    Files are numbered prompt by prompt: picture j of prompt i is number i n + j, and has the seed `seed` + j.
    `request` is what `Cascade.sample` takes (stages, steps, guidance, size, batch_size, device...), and
    `start` has one picture a prompt.

    Pictures that are there already, made by the same request, are kept: calling again after an interruption goes on.
    Raises UserError, and changes nothing, if one is there that this request would not make.
    """
    if n < 1:
        raise UserError(f"n is {n}; it must be 1 or more")
    out = Path(out)
    plan = cascade.plan(
        [prompt for prompt in prompts for _ in range(n)],
        seeds=[seed + j for _ in prompts for j in range(n)],
        start=None if start is None else [picture for picture in start for _ in range(n)],
        **request,
    )
    try:
        out.mkdir(parents=True, exist_ok=True)  # now, not after the first batch
    except OSError as error:
        raise UserError(f"cannot make the folder {out}: {error.strerror}; choose another") from None
    wanted = [cascade.metadata(plan, picture) for picture in range(len(plan.prompts))]
    paths = [out / f"{number:04d}.png" for number in range(len(wanted))]
    missing = []
    for number, (path, metadata) in enumerate(zip(paths, wanted, strict=True)):
        if path.exists():
            _check_same(path, metadata)
        else:
            missing.append(number)

    if missing:
        # Closed at once, so that the bars end before an error is told.
        with closing(cascade.run(plan.only(missing), progress=progress)) as images:
            for number, image in zip(missing, images, strict=True):
                write_png(paths[number], image, wanted[number])

    shown = range(min(len(paths), SHEET_PICTURES))
    captions = [plan.prompts[i] + (f" · seed {plan.seeds[i]}" if n > 1 else "") for i in shown]
    sheet = contact_sheet([read_picture(paths[i]) for i in shown], captions, columns=n if 1 < n <= 8 else None)
    write_png(out / "sheet.png", sheet)
    return paths


def _check_same(path: Path, wanted: dict[str, Any]) -> None:
    """Raise UserError unless the picture at `path` is the wanted one."""
    found = read_metadata(path)
    if found is None:
        raise UserError(f"{path} is there already and says nothing of how it was made; choose another folder")
    for key in ("prompt", "seed", "size", "start", "precision", "text", "stages"):
        if found.get(key) != wanted.get(key):
            raise UserError(
                f"{path} is there already, made with another {key}{_both(found.get(key), wanted.get(key))}; "
                "choose another folder, or remove it"
            )


def _both(found: Any, wanted: Any) -> str:
    """The two values where they are short enough to help."""
    return f" ({found!r}, not {wanted!r})" if len(repr(found)) + len(repr(wanted)) < 120 else ""
