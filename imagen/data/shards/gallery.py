"""Write a self-contained HTML page of a data set: counts, images with their captions, and rejected records."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from PIL import Image

from imagen.data.build.quality import REASONS
from imagen.data.loading.transforms import decode
from imagen.data.shards.dataset import ShardedDataset, open_split
from imagen.data.shards.images import LARGEST, BadSample, choose_image
from imagen.data.shards.inspect import bar_name, rejects, spread
from imagen.files import check_replaceable
from imagen.pages import data_url, write_page

PICTURES, ROWS = 60, 5  # images per split; records per reason
_TEMPLATE = Path(__file__).with_suffix(".html")
_THUMBNAIL = 192  # pixels
_LONGEST = 400  # maximum characters of a caption or detail
_MOST_CAPTIONS = 10  # per image


def write_gallery(path: str | Path, folder: str | Path, summary: dict[str, Any]) -> None:
    """Write the page, atomically. summary: the result of `imagen.data.shards.inspect.inspect(folder)`.

    Captions and file names are escaped. Raises UserError if the page cannot be written, or if
    `path` is a file of another kind.
    """
    check_replaceable(path, b"<title>imagen data</title>", "such a page")
    splits = [
        {
            "name": name,
            "figures": _figures(split),
            "sides": _bars(split["sides"]),
            "captions": _bars(split["captions"]),
            "samples": _samples(open_split(folder, name)),
        }
        for name, split in summary["splits"].items()
    ]
    rejected = _rejected(summary["rejected"], rejects(folder)) if summary["rejected"] else []
    write_page(path, _TEMPLATE, name=_cut(Path(folder).resolve().name), splits=splits, rejected=rejected)


def _figures(split: dict[str, Any]) -> list[tuple[str, str]]:
    return [
        (f"{split['samples']:,}", "samples"),
        (f"{split['shards']:,}", "shards"),
        (f"{split['bytes'] / 1e6:,.1f} MB", "of tars"),
        *((f"{row['share']:.0%}", f"with embeddings of {_cut(row['encoder'])}") for row in split["embeddings"]),
        *(
            (f"{row['cut']:,}", f"captions truncated at {row['max_tokens']} tokens of {_cut(row['encoder'])}")
            for row in split["embeddings"]
            if row["cut"]
        ),
    ]


def _bars(histogram: list[list[Any]]) -> list[dict[str, Any]]:
    most = max((count for _, _, count in histogram), default=0) or 1
    return [{"name": bar_name(first, last), "count": count, "most": most} for first, last, count in histogram]


def _samples(dataset: ShardedDataset) -> Iterator[dict[str, Any]]:
    for i in spread(PICTURES, len(dataset)):
        image = problem = None
        try:
            image = _thumbnail(dataset, i)
        except BadSample as error:
            problem = _cut(str(error))
        captions = [_cut(caption) for caption in dataset.captions(i)]
        yield {
            "image": image,
            "problem": problem,
            "captions": captions[:_MOST_CAPTIONS],
            "more": max(0, len(captions) - _MOST_CAPTIONS),
            "key": _cut(dataset.key(i)),
        }


def _thumbnail(dataset: ShardedDataset, i: int) -> str:
    data = dataset.read(i, choose_image(dataset.extensions(i), LARGEST))
    image = Image.fromarray(decode(data, min_side=_THUMBNAIL).permute(1, 2, 0).numpy())
    image.thumbnail((_THUMBNAIL, _THUMBNAIL))
    return data_url(image, "JPEG", quality=85)


def _rejected(counts: dict[str, int], rows: Iterable[dict[str, str]]) -> list[dict[str, Any]]:
    """Return the reasons with their counts and first records."""
    examples: dict[str, list[dict[str, str]]] = {reason: [] for reason in counts}
    for row in rows:
        if len(examples[row["reason"]]) < ROWS:
            examples[row["reason"]].append({name: _cut(row[name]) for name in ("key", "origin", "detail")})
    return [
        {"reason": _cut(reason), "count": count, "meaning": REASONS.get(reason, ""), "examples": examples[reason]}
        for reason, count in counts.items()
    ]


def _cut(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]} ..."
