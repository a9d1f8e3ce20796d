"""One self-contained HTML page: what was asked, what was drawn, how training went."""

import base64
import html
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from imagen.files import replacing

STYLE = """
:root { color-scheme: light dark; font-family: system-ui, sans-serif; line-height: 1.45 }
body { max-width: 70rem; margin: 2rem auto; padding: 0 1rem }
h1 { margin-bottom: 0 } .figures { display: flex; flex-wrap: wrap; gap: 1rem 3rem; margin: 1.5rem 0 }
.figures b { display: block; font-size: 1.8rem; line-height: 1.1 }
.grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(var(--cell), 1fr)); gap: .8rem }
figure { margin: 0 } figure img { width: 100%; display: block; border-radius: 6px }
.small img { image-rendering: pixelated } figcaption { font-size: .8rem; margin-top: .2rem }
.wrong { color: #c0392b } svg { width: 100%; height: auto } code { font-size: .9em }
"""


def write_page(
    path: Path,
    summary: dict[str, Any],
    small: Sequence[Image.Image],
    large: Sequence[Image.Image],
    base: Sequence[dict[str, Any]],
    sr: Sequence[dict[str, Any]],
) -> None:
    """Write the demo's page.

    summary: what `run_demo` returns. small, large: its pictures at 64 and, of the first ones, at 256.
    base, sr: the rows of the runs' metrics.jsonl.
    """
    gap, speed = summary["conditional_gap"], summary["images_per_s"]
    figures = [
        (f"{summary['colour_accuracy']:.0%}", "of backgrounds have the colour that the prompt names"),
        (f"{summary['images']:,}", "training pictures seen by the base"),
        ("too few to say" if speed is None else f"{speed:.0f}", "training pictures a second"),
        ("not measured" if gap is None else f"{gap:+.4f}", "loss added by swapping captions (0: the text is ignored)"),
    ]
    rows = summary["prompts"]
    body = f"""
<h1>imagen demo</h1>
<p>A cascade trained from nothing on emoji drawings. No prompt below was trained on: each object was only ever shown
on other colours. Run <code>imagen demo</code> again to go on training.</p>
<div class="figures">{"".join(f"<div><b>{value}</b>{html.escape(text)}</div>" for value, text in figures)}</div>
<h2>64 &rarr; 256</h2>
<div class="grid" style="--cell: 15rem">{_figures(large, rows)}</div>
<h2>Base, 64 pixels</h2>
<div class="grid small" style="--cell: 7rem">{_figures(small, rows)}</div>
<h2>Training</h2>
{_curves(base, sr)}
<p>Drawings: OpenMoji, CC BY-SA 4.0. Everything on this page is also in <code>summary.json</code>.</p>"""
    page = (
        "<!doctype html><html lang='en'><meta charset='utf-8'><meta name='viewport' content='width=device-width'>"
        f"<title>imagen demo</title><style>{STYLE}</style><body>{body}</body></html>"
    )
    with replacing(path) as temporary:
        temporary.write_text(page, encoding="utf-8")


def _figures(pictures: Sequence[Image.Image], rows: Sequence[dict[str, Any]]) -> str:
    return "".join(
        f"<figure><img alt='{html.escape(row['prompt'], quote=True)}' src='{_embedded(picture)}'>"
        f"<figcaption>{html.escape(row['prompt'])}"
        + ("" if row["right"] else f" <span class='wrong'>({row['found']})</span>")
        + "</figcaption></figure>"
        for picture, row in zip(pictures, rows, strict=False)
    )


def _embedded(picture: Image.Image) -> str:
    file = io.BytesIO()
    picture.save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def _curves(base: Sequence[dict[str, Any]], sr: Sequence[dict[str, Any]]) -> str:
    """Loss of both stages, and the conditional gap of the base, over pictures seen; as SVG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 3.2), layout="constrained")
    axes = figure.subplots(1, 3)
    measured = [row for row in base if "conditional_gap" in row]
    panels = [
        ("loss, base", base, "loss", "log"),
        ("loss, super-resolution", sr, "loss", "log"),
        ("conditional gap, base", measured, "conditional_gap", "linear"),
    ]
    for axis, (title, rows, key, scale) in zip(axes, panels, strict=True):
        axis.plot([row["images"] for row in rows], [row[key] for row in rows], color="#2a7de1")
        axis.set(title=title, xlabel="pictures seen", yscale=scale)
        axis.grid(alpha=0.3)
    axes[2].axhline(0, color="gray", linewidth=1)
    file = io.StringIO()
    figure.savefig(file, format="svg")
    return file.getvalue()[file.getvalue().index("<svg") :]
