"""Write an evaluation as one HTML page: numbers, plots, images, and the command."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from imagen.evaluate import plots
from imagen.files import replacing
from imagen.pages import data_url, write_page
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
    sheets = [_sheet(folder) for folder in (out, *(path.parent for path in sorted(out.glob("*/images"))))]
    path = out / "report.html"
    write_page(
        path,
        Path(__file__).with_name("report.html"),
        rows=rows,
        metrics=list(dict.fromkeys(name for row in rows for name in row["metrics"])),
        swept=swept,
        command=command,
        version=__version__,
        plots=[data_url(read_picture(out / f"{name}.png")) for name in figures],
        sheets=[sheet for sheet in sheets if sheet is not None],
    )
    return path


def _sheet(folder: Path) -> tuple[str, str] | None:
    """Return the folder's name and its first images as one embedded image."""
    files = sorted((folder / "images").glob("*.png"))[:SHOWN]
    if not files:
        return None
    sheet = contact_sheet([read_picture(file) for file in files], [""] * len(files), columns=8, cell=96)
    return folder.name, data_url(sheet)
