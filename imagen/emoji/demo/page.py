"""One self-contained HTML page: what was asked, what was drawn before and after training, how training went."""

import base64
import html
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from imagen.emoji.demo.drawing import Drawings, truth
from imagen.emoji.prompts import HeldoutPrompt
from imagen.files import replacing

STYLE = """
:root { color-scheme: light dark; font-family: system-ui, sans-serif; line-height: 1.45 }
body { max-width: 70rem; margin: 2rem auto; padding: 0 1rem }
h1 { margin-bottom: 0 } .figures { display: flex; flex-wrap: wrap; gap: 1rem 3rem; margin: 1.5rem 0 }
.figures b { display: block; font-size: 1.8rem; line-height: 1.1 }
.grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(var(--cell), 1fr)); gap: .8rem }
figure { margin: 0 } figure img { width: 100%; display: block; border-radius: 6px }
.small img { image-rendering: pixelated } figcaption { font-size: .8rem; margin-top: .2rem }
.row { display: flex; gap: 4px } .row img { width: 33% }
.wrong { color: #c0392b } svg { width: 100%; height: auto } code { font-size: .9em }
"""


def write_page(
    path: Path,
    summary: dict[str, Any],
    before: Drawings,
    after: Drawings,
    base: Sequence[dict[str, Any]],
    sr: Sequence[dict[str, Any]],
) -> None:
    """Write the demo's page.

    summary: what `run_demo` returns. before, after: pictures of the same prompts and noise, before and after this
    call's training. base, sr: the rows of the runs' metrics.jsonl.
    """
    rows, objects = summary["prompts"], summary["object_accuracy"]
    figures = [
        (f"{summary['colour_accuracy']:.0%}", "of backgrounds have the colour that the prompt names"),
        ("not judged" if objects is None else f"{objects:.0%}", "of objects are recognised as the one in the prompt"),
        (f"{summary['images']:,}", f"training pictures seen by the base, of {summary['objects']} objects"),
        (f"{summary['images_per_s']:.0f}", f"training pictures per second on {summary['machine']}"),
    ]
    shown = after.prompts[: len(before.small)]
    steps = zip(shown, before.small, after.small, truth(shown, summary["objects"]), strict=False)
    large = ""
    if after.large:
        large = f"""<h2>64 &rarr; 256</h2>
<div class="grid" style="--cell: 15rem">{_figures(after.large, rows)}</div>"""
    body = f"""
<h1>imagen demo</h1>
<p>A cascade trained from nothing on emoji drawings. No prompt below was trained on: each object was only ever shown
on other colours. Run <code>imagen demo</code> again to go on training.</p>
<div class="figures">{"".join(f"<div><b>{value}</b>{html.escape(text)}</div>" for value, text in figures)}</div>
<h2>Before and after</h2>
<p>The same prompts from the same noise: before this training, after it, and the real drawing.</p>
<div class="grid small" style="--cell: 17rem">{"".join(_triple(*each) for each in steps)}</div>
{large}
<h2>All {len(rows)} prompts, 64 pixels</h2>
<div class="grid small" style="--cell: 7rem">{_figures(after.small, rows)}</div>
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
        f"<figure>{_picture(picture, row['prompt'])}<figcaption>{html.escape(row['prompt'])}"
        + ("" if row["right"] else f" <span class='wrong'>({_wrong(row)})</span>")
        + "</figcaption></figure>"
        for picture, row in zip(pictures, rows, strict=False)
    )


def _triple(prompt: HeldoutPrompt, before: Image.Image, after: Image.Image, real: Image.Image) -> str:
    pictures = zip(("before", "after", "real drawing"), (before, after, real), strict=True)
    row = "".join(_picture(picture, f"{prompt.prompt}, {when}") for when, picture in pictures)
    return f"<figure><div class='row'>{row}</div><figcaption>{html.escape(prompt.prompt)}</figcaption></figure>"


def _wrong(row: dict[str, Any]) -> str:
    return row["found"] if row["wanted"] != row["found"] else "not recognised"


def _picture(picture: Image.Image, text: str) -> str:
    return f"<img alt='{html.escape(text, quote=True)}' src='{_embedded(picture)}'>"


def _embedded(picture: Image.Image) -> str:
    file = io.BytesIO()
    picture.save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def _curves(base: Sequence[dict[str, Any]], sr: Sequence[dict[str, Any]]) -> str:
    """Return the losses of both stages over pictures seen, as SVG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 3.2), layout="constrained")
    panels = (("loss, base", base), ("loss, super-resolution", sr))
    for axis, (title, rows) in zip(figure.subplots(1, 2), panels, strict=True):
        axis.plot([row["images"] for row in rows], [row["loss"] for row in rows], color="#2a7de1")
        axis.set(title=title, xlabel="pictures seen", yscale="log" if rows else "linear")
        axis.grid(alpha=0.3)
    file = io.StringIO()
    figure.savefig(file, format="svg")
    return file.getvalue()[file.getvalue().index("<svg") :]
