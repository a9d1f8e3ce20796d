"""Write one self-contained HTML page: prompts, images before and after training, and loss curves."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup
from PIL import Image

from imagen import pages
from imagen.emoji.demo.drawing import SampledImages, original_drawings
from imagen.pages import data_url

_TEMPLATE = Path(__file__).with_suffix(".html")


def write_page(
    path: Path,
    summary: dict[str, Any],
    before: SampledImages,
    after: SampledImages,
    base: Sequence[dict[str, Any]],
    sr: Sequence[dict[str, Any]],
) -> None:
    """Write the demo's page.

    summary: the value that `run_demo` returns.
    before, after: images of the same prompts and noise, before and after the training of this call.
    base, sr: the rows of the runs' metrics.jsonl.
    """
    rows, objects = summary["prompts"], summary["object_accuracy"]
    shown = after.prompts[: len(before.small)]
    columns = zip(shown, before.small, after.small, original_drawings(shown, summary["objects"]), strict=False)
    pages.write_page(
        path,
        _TEMPLATE,
        figures=[
            (f"{summary['colour_accuracy']:.0%}", "of backgrounds have the prompted colour"),
            ("not scored" if objects is None else f"{objects:.0%}", "of objects are recognised as the prompted one"),
            (f"{summary['images']:,}", f"training images seen by the base model, showing {summary['objects']} objects"),
            (f"{summary['images_per_s']:.0f}", f"training images per second on {summary['machine']}"),
        ],
        triples=[
            {
                "prompt": prompt.prompt,
                "images": [
                    (when, data_url(image))
                    for when, image in zip(("before", "after", "original drawing"), images, strict=True)
                ],
            }
            for prompt, *images in columns
        ],
        large=_with_prompts(after.large, rows),
        small=_with_prompts(after.small, rows),
        prompts=len(rows),
        curves=_curves(base, sr),
    )


def _with_prompts(images: Sequence[Image.Image], rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the images with their prompts, and what is wrong with each incorrect one."""
    return [
        {"prompt": row["prompt"], "url": data_url(image), "wrong": None if row["right"] else _wrong(row)}
        for image, row in zip(images, rows, strict=False)
    ]


def _wrong(row: dict[str, Any]) -> str:
    """Return the colour found if the background is wrong, else that the object is not recognised."""
    return row["found"] if row["wanted"] != row["found"] else "not recognised"


def _curves(base: Sequence[dict[str, Any]], sr: Sequence[dict[str, Any]]) -> Markup:
    """Plot the losses of both stages over images seen, as SVG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 3.2), layout="constrained")
    panels = (("loss, base", base), ("loss, super-resolution", sr))
    for axis, (title, rows) in zip(figure.subplots(1, 2), panels, strict=True):
        axis.plot([row["images"] for row in rows], [row["loss"] for row in rows], color="#2a7de1")
        axis.set(title=title, xlabel="images seen", yscale="log" if rows else "linear")
        axis.grid(alpha=0.3)
    file = io.StringIO()
    figure.savefig(file, format="svg")
    return Markup(file.getvalue()[file.getvalue().index("<svg") :])  # trusted: it contains no external text
