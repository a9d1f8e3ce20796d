"""One self-contained HTML page of a data set: figures, some pictures with their captions, some rejects."""

import base64
import html
import io
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from PIL import Image

from imagen.data.build.quality import REASONS
from imagen.data.loading.transforms import choose_image, decode
from imagen.data.shards.dataset import BadSample, ShardedDataset, open_split
from imagen.data.shards.inspect import LARGEST, rejects, spread
from imagen.files import replacing

PICTURES, ROWS = 60, 5  # of each split; of each reason
_THUMBNAIL = 192  # pixels
_LONGEST = 400  # characters of a caption or detail that are shown
_MOST_CAPTIONS = 10  # of one picture

STYLE = """
:root { color-scheme: light dark; font-family: system-ui, sans-serif; line-height: 1.45 }
body { max-width: 76rem; margin: 2rem auto; padding: 0 1rem; overflow-wrap: anywhere }
.row { display: flex; flex-wrap: wrap; gap: 1rem 3rem } .row b { display: block; font-size: 1.6rem; line-height: 1.1 }
.grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(10rem, 1fr)); gap: 1rem .8rem }
figure { margin: 0 } figure img { max-width: 100%; display: block; border-radius: 4px }
figcaption { font-size: .8rem; margin-top: .2rem }
ol { margin: 0; padding-left: 1.4em } small { opacity: .65; display: block }
table { border-collapse: collapse; font-size: .85rem } td, th { text-align: left; padding: .15rem .8rem .15rem 0 }
td { vertical-align: top } td.n { text-align: right } meter { width: 12rem }
"""


def write_gallery(path: str | Path, folder: str | Path, summary: dict[str, Any]) -> None:
    """Write the page, atomically. `summary` is what `imagen.data.shards.inspect.inspect` says of `folder`.

    Whatever a caption or a file's name holds is shown as text. Raises UserError if the page cannot be written.
    """
    body = [f"<h1>{_text(Path(folder).resolve().name)}</h1>"]
    for name, split in summary["splits"].items():
        body += [f"<h2>{_text(name)}</h2>", _figures(split)]
        body += ['<div class="row">', _bars("shorter side, pixels", split["sides"])]
        body += [_bars("caption, characters", split["captions"]), "</div>"]
        body += ['<h3>Some of it</h3><div class="grid">', *_pictures(open_split(folder, name)), "</div>"]
    if summary["rejected"]:
        body += ["<h2>Rejected</h2>", _rejected(summary["rejected"], rejects(folder))]
    page = (
        "<!doctype html><html lang='en'><meta charset='utf-8'><meta name='viewport' content='width=device-width'>"
        f"<title>imagen data</title><style>{STYLE}</style><body>{''.join(body)}</body></html>"
    )
    with replacing(path) as temporary:
        temporary.write_text(page, encoding="utf-8", errors="backslashreplace")


def _figures(split: dict[str, Any]) -> str:
    figures = [
        (f"{split['samples']:,}", "samples"),
        (f"{split['shards']:,}", "shards"),
        (f"{split['bytes'] / 1e6:,.1f} MB", "of tars"),
        *((f"{row['share']:.0%}", f"with embeddings of {row['encoder']}") for row in split["embeddings"]),
        *(
            (f"{row['cut']:,}", f"captions cut at {row['max_tokens']} tokens of {row['encoder']}")
            for row in split["embeddings"]
            if row["cut"]
        ),
    ]
    return (
        '<div class="row">' + "".join(f"<div><b>{value}</b>{_text(what)}</div>" for value, what in figures) + "</div>"
    )


def _bars(title: str, histogram: list[list[Any]]) -> str:
    most = max((count for _, _, count in histogram), default=0) or 1
    rows = "".join(
        f"<tr><td>{bar_name(first, last)}</td><td><meter max='{most}' value='{count}'></meter></td>"
        f"<td class='n'>{count:,}</td></tr>"
        for first, last, count in histogram
    )
    return f"<table><tr><th colspan='3'>{_text(title)}</th></tr>{rows}</table>"


def bar_name(first: int, last: int | None) -> str:
    """ "64 to 127", "512 and more"."""
    return f"{first} and more" if last is None else str(first) if first == last else f"{first} to {last}"


def _pictures(dataset: ShardedDataset) -> Iterable[str]:
    for i in spread(PICTURES, len(dataset)):
        try:
            shown = f"<img alt='' src='{_thumbnail(dataset, i)}'>"
        except BadSample as error:
            shown = f"<p>{_text(str(error))}</p>"
        captions = [_text(caption) for caption in dataset.captions(i)]
        caption = captions[0] or "<i>no caption</i>"
        if len(captions) > 1:
            caption = f"<ol>{''.join(f'<li>{one}</li>' for one in captions[:_MOST_CAPTIONS])}</ol>"
        if len(captions) > _MOST_CAPTIONS:
            caption += f"and {len(captions) - _MOST_CAPTIONS} more"
        yield f"<figure>{shown}<figcaption>{caption}<small>{_text(dataset.key(i))}</small></figcaption></figure>"


def _thumbnail(dataset: ShardedDataset, i: int) -> str:
    data = dataset.read(i, choose_image(dataset.extensions(i), LARGEST))
    image = Image.fromarray(decode(data, min_side=_THUMBNAIL).permute(1, 2, 0).numpy())
    image.thumbnail((_THUMBNAIL, _THUMBNAIL))
    file = io.BytesIO()
    image.save(file, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()


def _rejected(counts: dict[str, int], rows: Iterable[dict[str, str]]) -> str:
    """A table of the reasons, each with its first rows."""
    examples: dict[str, list[dict[str, str]]] = {reason: [] for reason in counts}
    for row in rows:
        if len(examples[row["reason"]]) < ROWS:
            examples[row["reason"]].append(row)
    lines = []
    for reason, count in counts.items():
        lines.append(f"<tr><th>{_text(reason)}</th><th>{count:,}</th><th>{_text(REASONS.get(reason, ''))}</th></tr>")
        for row in examples[reason]:
            lines.append(f"<tr><td>{_text(row['key'])}</td><td>{_text(row['origin'])}</td>")
            lines.append(f"<td>{_text(row['detail'])}</td></tr>")
    return f"<table>{''.join(lines)}</table>"


def _text(text: str) -> str:
    return html.escape(text if len(text) <= _LONGEST else f"{text[:_LONGEST]} ...", quote=True)
