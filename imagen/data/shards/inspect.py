"""Describe a data set: counts of all samples, sizes and captions of a subset, and the records that a build rejected."""

import json
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from imagen.data.embed.sidecar import Truncation, first_captions, read_truncation
from imagen.data.shards.dataset import ShardedDataset, open_split, splits
from imagen.data.shards.images import LARGEST, BadSample, choose_image
from imagen.data.shards.mapped import MappedTensors
from imagen.errors import UserError
from imagen.pictures.decoding import read_header

SAMPLE_SIZE = 10_000  # samples per split whose image and captions are read
SIDES = (1, 64, 128, 256, 512, 1024, 2048)  # lower bounds of the histogram's bars, in pixels of the shorter side
LENGTHS = (0, 1, 16, 32, 64, 128, 256, 512)  # lower bounds of the bars, in characters of a caption


def inspect(folder: str | Path, sample_size: int = SAMPLE_SIZE) -> dict[str, Any]:
    """Describe the shards of `folder`, ready for JSON.

    {"splits": {NAME: {"samples", "shards", "bytes", "embeddings": [...], "looked_at", "unreadable", "with_several",
    "captions_looked_at", "sides", "captions"}}, "rejected": {REASON: count}}. "sides" and "captions" are histograms,
    [[first, last or null, count], ...], of at most `sample_size` evenly spaced samples per split, and of all their
    captions; "with_several" counts those samples with several captions.
    Raises UserError if the shards cannot be opened.
    """
    described = {
        name: _split(open_split(folder, name), sample_size)
        for name, path in splits(folder).items()
        if not _is_empty_build(Path(path))
    }
    counts = Counter(row["reason"] for row in rejects(folder))
    return {
        "splits": described,
        "rejected": dict(sorted(counts.items(), key=lambda item: (-item[1], item[0]))),
    }


def _is_empty_build(folder: Path) -> bool:
    """Return whether `folder` contains a build that accepted no sample and so wrote no shard."""
    return (folder / "build.json").exists() and not any(folder.glob("*.tar"))


def rejects(folder: str | Path) -> Iterator[dict[str, str]]:
    """Yield the rows {"key", "origin", "reason", "detail"} of a data set's quarantine tables, including duplicates."""
    for root in {Path(path): None for path in (folder, *splits(folder).values())}:
        for path in sorted([*root.glob("*.rejected.jsonl"), *root.glob("*.duplicates.jsonl")]):
            try:
                with open(path, encoding="utf-8") as file:
                    yield from map(json.loads, file)
            except (OSError, ValueError) as error:
                raise UserError(f"cannot read {path}: {error}; delete it, and its report, and build again") from None


def spread(count: int, among: int) -> list[int]:
    """Return at most `count` evenly spaced numbers below `among`."""
    return sorted({i * among // count for i in range(count)}) if among > count else list(range(among))


def picture_size(dataset: ShardedDataset, i: int) -> tuple[int, int]:
    """Return the width and height of a sample's largest image from its header. Raises BadSample without an image."""
    data = dataset.read(i, choose_image(dataset.extensions(i), LARGEST))
    try:
        with read_header(data) as image:
            return image.size
    except Exception as error:  # Pillow raises almost anything on hostile bytes
        raise BadSample(f"not an image ({type(error).__name__})") from None


def _split(dataset: ShardedDataset, sample_size: int) -> dict[str, Any]:
    sides: list[int] = []
    lengths: list[int] = []  # of all captions
    unreadable = several = 0
    chosen = spread(sample_size, len(dataset))
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
        "bytes": sum(int(index.metadata["tar_bytes"]) for index in dataset.indexes),
        "embeddings": _embeddings(dataset),
        "looked_at": len(chosen),
        "unreadable": unreadable,
        "with_several": several,
        "captions_looked_at": len(lengths),
        "sides": _histogram(sides, SIDES),
        "captions": _histogram(lengths, LENGTHS),
    }


def _embeddings(dataset: ShardedDataset) -> list[dict[str, Any]]:
    """Count the samples with embeddings for each encoder and its settings. Raises UserError for a truncated sidecar."""
    samples: dict[tuple[str, ...], int] = defaultdict(int)
    truncations: dict[tuple[str, ...], Truncation | None] = {}
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
            before, truncation = truncations.get(made_by, Truncation()), read_truncation(sidecar)
            truncations[made_by] = None if before is None or truncation is None else before + truncation
    return [
        {
            "encoder": encoder,
            "revision": revision,
            "max_tokens": int(max_tokens),
            "width": int(width),
            "samples": count,
            "share": count / max(len(dataset), 1),
            **_truncation_fields(truncations[encoder, revision, max_tokens, width]),
        }
        for (encoder, revision, max_tokens, width), count in sorted(samples.items())
    ]


def _truncation_fields(truncation: Truncation | None) -> dict[str, int | None]:
    """Return the number of truncated captions, and the tokens they lose in total and at most; None if unknown."""
    if truncation is None:
        return {"cut": None, "cut_tokens": None, "cut_most": None}
    return {"cut": truncation.captions, "cut_tokens": truncation.tokens, "cut_most": truncation.most}


def _prefixes(name: str) -> Iterator[str]:
    """Yield `name` up to each of its dots, longest first; names of shards and encoders may contain dots."""
    parts = name.split(".")
    return (".".join(parts[:count]) for count in range(len(parts) - 1, 0, -1))


def _histogram(values: list[int], starts: tuple[int, ...]) -> list[list[int | None]]:
    """Return [[first, last, count], ...]; `last` of the last bar is None."""
    counts = np.bincount(np.searchsorted(starts, values, side="right") - 1, minlength=len(starts)) if values else starts
    ends = [*(start - 1 for start in starts[1:]), None]
    return [[start, end, int(count) if values else 0] for start, end, count in zip(starts, ends, counts, strict=True)]


def bar_name(first: int, last: int | None) -> str:
    """Return the name of a bar: "64 to 127", "512 and more"."""
    return f"{first} and more" if last is None else str(first) if first == last else f"{first} to {last}"
