"""Write an evaluation as one HTML page: numbers, plots, images, and the command that made it."""

import base64
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader

from imagen.evaluate import plots
from imagen.files import replacing
from imagen.pictures import contact_sheet, read_picture
from imagen.version import __version__

SHOWN = 64  # images on the page
PARETO = (("clip", "fid"), ("clip", "fd_dinov2"), ("clip", "cmmd"), ("precision", "recall"))


def write_report(out: Path, rows: Sequence[dict[str, Any]], command: str, *, swept: str | None = None) -> Path:
    """Write `out`/report.html and its plots as PNG beside it; return the page's path.

    rows: reports of `imagen.evaluate.run`. swept: the setting in which they differ, if any. The page contains its
    images, so that it can be sent as one file. Raises UserError if matplotlib is missing or the disk is full.
    """
    figures = {}
    if swept is not None:
        figures[f"over-{swept}"] = plots.over_setting(rows, swept)
        names = rows[0]["metrics"]
        for x, y in PARETO:
            if x in names and y in names:
                figures[f"{y}-{x}"] = plots.trade_off(rows, swept, x, y)
    elif len(rows) > 1:
        figures["stages"] = plots.by_stage(rows)
    for name, figure in figures.items():
        with replacing(out / f"{name}.png") as temporary:
            figure.savefig(temporary, format="png", dpi=120)
    pictures = [("", out / f"{name}.png") for name in figures]
    sheets = [_sheet(folder) for folder in (out, *(path.parent for path in sorted(out.glob("*/images"))))]
    page = Environment(loader=PackageLoader("imagen", "evaluate"), autoescape=True).get_template("report.html")
    content = page.render(
        rows=rows,
        metrics=list(dict.fromkeys(name for row in rows for name in row["metrics"])),
        swept=swept,
        command=command,
        version=__version__,
        plots=[_embedded(path.read_bytes()) for _, path in pictures],
        sheets=[sheet for sheet in sheets if sheet is not None],
    )
    path = out / "report.html"
    with replacing(path) as temporary:
        temporary.write_text(content, encoding="utf-8")
    return path


def _sheet(folder: Path) -> tuple[str, str] | None:
    """Return the folder's name and its first images as one embedded image."""
    files = sorted((folder / "images").glob("*.png"))[:SHOWN]
    if not files:
        return None
    stream = io.BytesIO()
    contact_sheet([read_picture(file) for file in files], [""] * len(files), columns=8, cell=96).save(stream, "PNG")
    return folder.name, _embedded(stream.getvalue())


def _embedded(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"
