"""One self-contained HTML page: the prompts, their images before and after training, and the loss curves."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup
from PIL import Image

from imagen import pages
from imagen.emoji.demo.drawing import SampledImages, truth
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

    summary: what `run_demo` returns. before, after: images of the same prompts and noise, before and after this
    call's training. base, sr: the rows of the runs' metrics.jsonl.
    """
    rows, objects = summary["prompts"], summary["object_accuracy"]
    shown = after.prompts[: len(before.small)]
    drawn = zip(shown, before.small, after.small, truth(shown, summary["objects"]), strict=False)
    pages.write_page(
        path,
        _TEMPLATE,
        figures=[
            (f"{summary['colour_accuracy']:.0%}", "of backgrounds have the colour in the prompt"),
            ("not judged" if objects is None else f"{objects:.0%}", "of objects are recognised as that in the prompt"),
            (f"{summary['images']:,}", f"training images seen by the base model, of {summary['objects']} objects"),
            (f"{summary['images_per_s']:.0f}", f"training images per second on {summary['machine']}"),
        ],
        triples=[
            {
                "prompt": prompt.prompt,
                "pictures": [
                    (when, data_url(image))
                    for when, image in zip(("before", "after", "original drawing"), images, strict=True)
                ],
            }
            for prompt, *images in drawn
        ],
        large=_pictures(after.large, rows),
        small=_pictures(after.small, rows),
        prompts=len(rows),
        curves=_curves(base, sr),
    )


def _pictures(images: Sequence[Image.Image], rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Images with their prompts and, where one is wrong, what it shows."""
    return [
        {"prompt": row["prompt"], "url": data_url(image), "wrong": None if row["right"] else _wrong(row)}
        for image, row in zip(images, rows, strict=False)
    ]


def _wrong(row: dict[str, Any]) -> str:
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
    return Markup(file.getvalue()[file.getvalue().index("<svg") :])  # ours: it holds no text from outside
