"""What a data set holds: counts of all samples, and the sizes and captions of some of them; what a build rejected."""

import json
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from imagen.data.embed.sidecar import Cut, cut_of, first_captions
from imagen.data.loading.transforms import choose_image
from imagen.data.shards.dataset import BadSample, ShardedDataset, open_split, splits
from imagen.data.shards.mapped import MappedTensors
from imagen.errors import UserError
from imagen.pictures.decoding import read_header

LOOKED_AT = 10_000  # samples of a split whose picture and caption are looked at
SIDES = (1, 64, 128, 256, 512, 1024, 2048)  # pixels of the shorter side: where each bar of the histogram begins
LENGTHS = (0, 1, 16, 32, 64, 128, 256, 512)  # characters of a caption
LARGEST = 1 << 30  # of several masters the largest is meant


def inspect(folder: str | Path, look_at: int = LOOKED_AT) -> dict[str, Any]:
    """What shards hold, ready for JSON.

    {"splits": {NAME: {"samples", "shards", "bytes", "embeddings": [...], "looked_at", "unreadable", "with_several",
    "captions_looked_at", "sides", "captions"}}, "rejected": {REASON: count}}. "sides" and "captions" are histograms,
    [[first, last or null, count], ...], of at most `look_at` samples of a split, spread evenly, and of all their
    captions; "with_several" of these samples have several.
    Raises UserError for what cannot be opened for training either.
    """
    described = {
        name: _split(open_split(folder, name), look_at)
        for name, place in splits(folder).items()
        if not _nothing_good(Path(place))
    }
    counts = Counter(row["reason"] for row in rejects(folder))
    return {
        "splits": described,
        "rejected": dict(sorted(counts.items(), key=lambda item: (-item[1], item[0]))),
    }


def _nothing_good(folder: Path) -> bool:
    """Whether a build ended here without one good sample, and so without a shard."""
    return (folder / "build.json").exists() and not any(folder.glob("*.tar"))


def rejects(folder: str | Path) -> Iterator[dict[str, str]]:
    """The rows {"key", "origin", "reason", "detail"} of all quarantine tables of a data set, duplicates too."""
    for place in {Path(place): None for place in (folder, *splits(folder).values())}:
        for path in sorted([*place.glob("*.rejected.jsonl"), *place.glob("*.duplicates.jsonl")]):
            try:
                with open(path, encoding="utf-8") as file:
                    yield from map(json.loads, file)
            except (OSError, ValueError) as error:
                raise UserError(f"cannot read {path}: {error}; delete it, and its report, and build again") from None


def spread(count: int, among: int) -> list[int]:
    """At most `count` of the numbers below `among`, evenly spread."""
    return sorted({i * among // count for i in range(count)}) if among > count else list(range(among))


def picture_size(dataset: ShardedDataset, i: int) -> tuple[int, int]:
    """Width and height of a sample's largest picture, by its header; BadSample if there is none or it is none."""
    data = dataset.read(i, choose_image(dataset.extensions(i), LARGEST))
    try:
        with read_header(data) as image:
            return image.size
    except Exception as error:  # Pillow raises almost anything on hostile bytes
        raise BadSample(f"not a picture ({type(error).__name__})") from None


def _split(dataset: ShardedDataset, look_at: int) -> dict[str, Any]:
    sides: list[int] = []
    lengths: list[int] = []  # of all captions
    unreadable = several = 0
    chosen = spread(look_at, len(dataset))
    for i in chosen:
        captions = dataset.captions(i)
        lengths += map(len, captions)
        several += len(captions) > 1
        try:
            sides.append(min(picture_size(dataset, i)))
        except BadSample:
            unreadable += 1
    return {
        "samples": len(dataset),
        "shards": len(dataset.shards),
        "bytes": sum(dataset.tar_path(shard).stat().st_size for shard in dataset.shards),
        "embeddings": _embeddings(dataset),
        "looked_at": len(chosen),
        "unreadable": unreadable,
        "with_several": several,
        "captions_looked_at": len(lengths),
        "sides": _histogram(sides, SIDES),
        "captions": _histogram(lengths, LENGTHS),
    }


def _embeddings(dataset: ShardedDataset) -> list[dict[str, Any]]:
    """For each encoder and its settings how many samples have embeddings of it; a cut-off sidecar is a UserError."""
    samples: dict[tuple[str, ...], int] = defaultdict(int)
    cuts: dict[tuple[str, ...], Cut | None] = {}
    owner = {name: int(size) for name, size in zip(dataset.shards, dataset.sizes, strict=True)}
    for path in sorted(dataset.folder.glob("*.text.safetensors")):
        shard = next((name for name in _prefixes(path.name) if name in owner), None)
        if shard is None:
            continue
        sidecar = MappedTensors(path, f"run `imagen data encode {dataset.root}` again")
        if len(first_captions(sidecar)) - 1 == owner[shard]:
            names = ("encoder", "revision", "max_tokens", "width")
            made_by = tuple(sidecar.metadata[name] for name in names)
            samples[made_by] += owner[shard]
            before, cut = cuts.get(made_by, Cut()), cut_of(sidecar)
            cuts[made_by] = None if before is None or cut is None else before + cut
    return [
        {
            "encoder": encoder,
            "revision": revision,
            "max_tokens": int(max_tokens),
            "width": int(width),
            "samples": count,
            "share": count / max(len(dataset), 1),
            **_cut(cuts[encoder, revision, max_tokens, width]),
        }
        for (encoder, revision, max_tokens, width), count in sorted(samples.items())
    ]


def _cut(cut: Cut | None) -> dict[str, int | None]:
    """How many captions are longer than the token limit, and by how many tokens; None where nobody knows."""
    if cut is None:
        return {"cut": None, "cut_tokens": None, "cut_most": None}
    return {"cut": cut.captions, "cut_tokens": cut.tokens, "cut_most": cut.most}


def _prefixes(name: str) -> Iterator[str]:
    """`name` up to each of its dots, the longest first: a shard's name may have dots, an encoder's too."""
    parts = name.split(".")
    return (".".join(parts[:count]) for count in range(len(parts) - 1, 0, -1))


def _histogram(values: list[int], starts: tuple[int, ...]) -> list[list[int | None]]:
    """[[first, last, count], ...]; the last bar has no end."""
    counts = np.bincount(np.searchsorted(starts, values, side="right") - 1, minlength=len(starts)) if values else starts
    ends = [*(start - 1 for start in starts[1:]), None]
    return [[start, end, int(count) if values else 0] for start, end, count in zip(starts, ends, counts, strict=True)]


def bar_name(first: int, last: int | None) -> str:
    """ "64 to 127", "512 and more"."""
    return f"{first} and more" if last is None else str(first) if first == last else f"{first} to {last}"
