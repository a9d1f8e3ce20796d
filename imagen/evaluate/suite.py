"""Sample prompt suites: a sheet of images per category and, with CLIP, a score per category.

`imagen200.csv` is this project's: 200 prompts in eleven categories that correspond to those of DrawBench (Imagen, App.
C). Other suites are read by path: DrawBench's CSV (`Prompts`, `Category`) and PartiPrompts' TSV (`Prompt`,
`Category`).
"""

import csv
import io
import itertools
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from typing_extensions import Unpack

from imagen.cascade import Cascade, write_samples
from imagen.cascade.options import JobOptions
from imagen.cascade.output import SHEET_PICTURES
from imagen.errors import UserError, check_text, suggest
from imagen.evaluate.extractors import load_extractor
from imagen.evaluate.extractors.hub import Clip
from imagen.evaluate.generated import WAIT
from imagen.evaluate.metrics.interval import Interval, bootstrap
from imagen.files import open_given, write_json
from imagen.pictures import contact_sheet, read_picture, write_png
from imagen.stage.inputs import from_images

SUITES = Path(__file__).with_name("suites")
MOST_BYTES = 1 << 26
_PROMPT, _CATEGORY = ("prompt", "prompts"), ("category", "categories")
_BATCH = 32


class Item(NamedTuple):
    category: str
    prompt: str


def read_suite(name: str | Path) -> list[Item]:
    """Read the packaged suite of that name, or a CSV or TSV file with a header; rows without a category are "all".

    Raises UserError, naming the line, if the file is not such a table.
    """
    packaged = {path.stem: path for path in SUITES.glob("*.csv")}
    path = packaged.get(str(name), Path(name))
    if not path.exists() and not path.suffix:
        known = f"known: {', '.join(sorted(packaged))}, or a CSV file"
        raise UserError(f"no prompt suite {str(name)!r}{suggest(str(name), packaged, known)}")
    with open_given(path) as file:
        data = file.read(MOST_BYTES + 1)
    if len(data) > MOST_BYTES:
        raise UserError(f"{path} has more than {MOST_BYTES >> 20} MiB, which is the limit for a prompt suite")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise UserError(f"{path} is not a text file in UTF-8") from None
    rows = csv.reader(io.StringIO(text), delimiter="\t" if path.suffix.lower() == ".tsv" else ",")
    try:
        header = [field.strip().lower() for field in next(rows, [])]
    except csv.Error as error:
        raise UserError(f"{path}, line 1: {error}") from None
    prompt = next((header.index(field) for field in _PROMPT if field in header), None)
    category = next((header.index(field) for field in _CATEGORY if field in header), None)
    if prompt is None:
        raise UserError(f"{path}: its header has no column `prompt`")
    items = []
    try:
        for row in rows:
            if not any(row):
                continue
            if len(row) <= max(prompt, category or 0):
                raise UserError(f"{path}, line {rows.line_num}: {len(row)} fields, fewer than the header's")
            check_text(f"{path}, line {rows.line_num}: the prompt", row[prompt])
            items.append(Item("all" if category is None else row[category].strip() or "all", row[prompt].strip()))
    except csv.Error as error:
        raise UserError(f"{path}, line {rows.line_num}: {error}") from None
    if not items:
        raise UserError(f"{path} contains no prompts")
    return items


def run_suite(
    cascade: Cascade,
    items: Sequence[Item],
    out: Path,
    *,
    n: int = 1,
    seed: int = 0,
    clip: str | None = None,
    rank: int = 0,
    ranks: int = 1,
    progress: bool = True,
    **options: Unpack[JobOptions],
) -> dict[str, Any] | None:
    """Sample `n` images of each prompt into `out`, with a sheet per category; return the content of `out`/suite.json.

    clip: weights of CLIP, to score images by category (`imagen.evaluate.extractors.hub.Clip`). Calling again resumes
    an interrupted job. rank, ranks: as for `write_samples`; only rank 0 returns a report, when all images are written.
    Raises UserError as `write_samples` does, and if CLIP cannot be loaded.
    """
    prompts = [item.prompt for item in items]
    extractor = None if clip is None or rank != 0 else load_extractor(f"clip:{clip}", options.get("device") or "cpu")
    paths = write_samples(cascade, prompts, out, seed=seed, n=n, rank=rank, ranks=ranks, progress=progress, **options)
    if rank != 0:
        return None
    while not all(path.is_file() for path in paths):  # of other ranks
        time.sleep(WAIT)
    categories: dict[str, list[int]] = {}
    for number, item in enumerate(items):
        categories.setdefault(item.category, []).append(number)
    report: dict[str, Any] = {"prompts": len(items), "images_per_prompt": n, "seed": seed, "categories": {}}
    scores: list[float] = []
    names = _file_names(categories)
    for category, numbers in categories.items():
        files = [paths[number * n + j] for number in numbers for j in range(n)]
        captions = [prompts[number] for number in numbers for _ in range(n)]
        _write_sheet(out / "sheets" / f"{names[category]}.png", files, captions, n, category)
        entry: dict[str, Any] = {"prompts": len(numbers)}
        if isinstance(extractor, Clip):
            found = _clip_scores(extractor, files, captions)
            scores += found
            entry["clip"] = _interval(found)._asdict()
        report["categories"][category] = entry
    if scores:
        report["clip"] = _interval(scores)._asdict()
    write_json(out / "suite.json", report)
    return report


def _write_sheet(path: Path, files: Sequence[Path], captions: Sequence[str], n: int, title: str) -> None:
    """Write a sheet of the first images of a category."""
    images = [read_picture(file) for file in files[:SHEET_PICTURES]]
    write_png(path, contact_sheet(images, captions[: len(images)], columns=max(n, 6), cell=256, title=title))


def _file_names(categories: Iterable[str]) -> dict[str, str]:
    """Return a distinct file name per category: -2, -3 and so on distinguish those of equal letters."""
    names: dict[str, str] = {}
    for category in categories:
        plain = "".join(letter if letter.isalnum() else "-" for letter in category.lower())
        numbered = itertools.chain([plain], (f"{plain}-{i}" for i in itertools.count(2)))
        names[category] = next(name for name in numbered if name not in names.values())
    return names


def _clip_scores(extractor: Clip, files: Sequence[Path], captions: Sequence[str]) -> list[float]:
    parts = []
    for start in range(0, len(files), _BATCH):
        images = [read_picture(file).convert("RGB") for file in files[start : start + _BATCH]]
        made_BD = extractor(from_images(images, 3))
        text_BD = extractor.embed(captions[start : start + _BATCH])
        parts.append(100 * torch.cosine_similarity(made_BD, text_BD).clamp(min=0))
    return [float(value) for value in torch.cat(parts)]


def _interval(scores: Sequence[float]) -> Interval:
    import numpy as np

    return bootstrap(lambda values: float(values.mean()), np.asarray(scores))
