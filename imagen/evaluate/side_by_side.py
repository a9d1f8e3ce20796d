"""Lay evaluations side by side: the metrics of several outputs of `imagen evaluate` in one table and one figure."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from imagen.errors import UserError
from imagen.evaluate import REPORT, SWEPT, plots
from imagen.files import read_json

Row = dict[str, Any]

log = logging.getLogger(__name__)


def is_evaluation(folder: str | Path) -> bool:
    return (Path(folder) / REPORT).is_file()


def side_by_side(folders: Sequence[str | Path], out: str | Path) -> list[Row]:
    """Plot the metrics of `folders` beside each other, as PNG, SVG or PDF at `out`; return a row per evaluation.

    A row has "name" (the folder; for a sweep or a cascade gap also the setting) and what the report has. Warns if the
    evaluations have different references, numbers of images, resolutions or feature extractors, because metrics depend
    on them. Raises UserError for an unreadable report or another file format, or if matplotlib is missing.
    """
    kind = Path(out).suffix.lower().lstrip(".") or "png"
    if kind not in plots.FORMATS:
        raise UserError(
            f"{out}: plots are written as {', '.join(f'.{each}' for each in plots.FORMATS)}; choose one of these"
        )
    reports = [_read(Path(folder)) for folder in folders]
    rows = [row for report in reports for row in report]
    extractors = [pair for row in rows for pair in row.get("extractors", {}).items()]
    differing: list[tuple[str, set[Any]]] = [
        ("numbers of images", {row["images"] for row in rows}),
        ("real images", {(row["reference"]["fingerprint"], row["reference"]["split"]) for row in rows}),
        ("numbers of real images", {row["reference"]["images"] for row in rows}),
        ("resolutions", {frozenset(row["resolution"] for row in report) for report in reports}),  # a gap has several
        *((f"networks for {name}", {each for other, each in extractors if other == name}) for name in dict(extractors)),
    ]
    for what, values in differing:
        if len(values) > 1:
            log.warning("these evaluations have different %s, on which metrics such as FID depend", what)
    figure = plots.side_by_side(rows)
    plots.save_figure(figure, out, kind, dpi=110)
    return rows


def _read(folder: Path) -> list[Row]:
    """Return the rows of a report, each with its name."""
    path = folder / REPORT
    report = read_json(path)
    rows = report.get("rows", [report]) if isinstance(report, dict) else None
    if not isinstance(rows, list) or not rows or not all(_is_row(row) for row in rows):
        raise UserError(f"{path} is not a report of `imagen evaluate`, or is damaged")
    return [{**row, "name": _name(folder, row, len(rows) > 1)} for row in rows]


def _is_row(row: Any) -> bool:
    if not isinstance(row, dict):
        return False
    metrics, reference, extractors = row.get("metrics"), row.get("reference"), row.get("extractors", {})
    if not (isinstance(metrics, dict) and isinstance(reference, dict) and isinstance(extractors, dict) and metrics):
        return False
    if not all(isinstance(each, dict) for each in metrics.values()):
        return False
    intervals = [each.get(key) for each in metrics.values() for key in ("value", "low", "high")]
    numbers = (row.get("images"), row.get("resolution"), reference.get("images"), *intervals)
    texts = (reference.get("fingerprint"), reference.get("split"), *extractors.values())
    return all(isinstance(value, int | float) for value in numbers) and all(isinstance(text, str) for text in texts)


def _name(folder: Path, row: Row, several: bool) -> str:
    if not several:
        return str(folder)
    if swept := next((name for name in SWEPT if name in row), None):
        return f"{folder}, {swept} {row[swept]}"
    return f"{folder}, {row.get('resolution')} {row.get('inputs')}"
