"""One part of a source to shards: what a process does, on any machine, without asking another one.

A part leaves, under its name: shards and their indexes (in place: the index alone), `NAME.rejected.jsonl` if there
were any, `NAME.hashes.npy`, and, last, `NAME.report.json`. A part with a report is done; one without starts again.
"""

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from imagen.data.build.quality import Checked, Limits, Rejected, check
from imagen.data.embed.sidecar import write_sidecar
from imagen.data.loading.transforms import choose_image
from imagen.data.shards.captions import pack
from imagen.data.shards.dataset import BadSample
from imagen.data.shards.index import index_path, index_shard
from imagen.data.shards.tar_samples import Places, scan_tar
from imagen.data.shards.writer import ShardWriter
from imagen.data.sources.base import Part, Record, Source
from imagen.errors import UserError
from imagen.files import read_json, replacing, write_json
from imagen.pictures.names import PICTURES
from imagen.text.config import TextConfig

# How tars used in place are read: samples by number count in `hashes.npy`, so another way begins anew.
_SCAN = 2


@dataclass(frozen=True, kw_only=True)
class Job:
    """A build, as far as its parts must know it."""

    out: Path | None  # None: the source's tars are used in place
    limits: Limits = field(default_factory=Limits)
    samples_per_shard: int = 1000
    keep_duplicates: bool = False
    text: TextConfig | None = None  # of the embeddings that the source brings
    build: str = ""  # hash of all arguments: a report of another build counts for nothing


@dataclass(frozen=True)
class Place:
    """Where a part's files lie: folder and name."""

    folder: Path
    name: str

    def path(self, ending: str) -> Path:
        return self.folder / f"{self.name}.{ending}"

    def tars(self, report: dict[str, Any]) -> list[Path]:
        return [self.folder / name for name in report["shards"]]


def place(job: Job, source: Source, number: int, part: Part) -> Place:
    """A part's place: its number in `job.out`, or that of its tar."""
    if job.out is not None:
        return Place(job.out, f"{number:05d}")
    tar = Path(source.tar(part))  # type: ignore[attr-defined]  # a source with `in_place`
    return Place(tar.parent, tar.name.removesuffix(".tar"))


def finished(job: Job, where: Place) -> dict[str, Any] | None:
    """The report of a part that is done and whose files are all there still, else None."""
    if not where.path("report.json").exists():
        return None
    report = read_json(where.path("report.json"))
    whole = where.path("hashes.npy").exists() and all(
        tar.exists() and index_path(tar).exists() and tar.stat().st_size == size
        for tar, size in zip(where.tars(report), report["shard_bytes"], strict=True)
    )
    as_now = job.out is not None or report.get("scan") == _SCAN
    return report if whole and as_now and report["build"] == job.build else None


def build_part(job: Job, source: Source, number: int, part: Part) -> dict[str, Any]:
    """Check one part's records and write what it leaves; returns its report.

    The files are a function of the part and of `job` alone. Raises UserError if a file of the source is lost, if
    `job.out` cannot be written, or if the source brings embeddings and `job.text` says nothing of them.
    """
    where = place(job, source, number, part)
    # The report first: without it nothing else counts. Shards need no clearing: a killed process left the same bytes.
    for ending in ("report.json", "hashes.npy", "rejected.jsonl", "duplicates.jsonl"):
        where.path(ending).unlink(missing_ok=True)
    rejects: list[dict[str, str]] = []
    records = _Good(job, source.read(part), rejects)
    if job.out is None:
        tars, hashes = _index(where, records)
    else:
        tars, hashes = _write(job, where, records)
    if rejects:
        write_lines(where.path("rejected.jsonl"), rejects)
    with replacing(where.path("hashes.npy")) as temporary, open(temporary, "wb") as file:
        np.save(file, np.array(hashes, np.uint64).reshape(-1, 3))
    report = {
        "build": job.build,
        "records": records.seen,
        "good": len(hashes),
        "captions": sum(captions for _, _, captions in hashes),
        "rejected": count_reasons(rejects),
        "shards": [tar.name for tar in tars],
        "shard_bytes": [tar.stat().st_size for tar in tars],
        **({"scan": _SCAN} if job.out is None else {}),
    }
    write_json(where.path("report.json"), report)
    return report


class _Good:
    """The good records of a part, in order; counts all and writes down the others."""

    def __init__(self, job: Job, records: Iterable[Record], rejects: list[dict[str, str]]):
        self.job, self.records, self.rejects = job, records, rejects
        self.seen = 0  # records, and captions that were left out of good ones

    def __iter__(self) -> Iterator[tuple[int, str, Checked]]:
        """(row in the part, key, what to store)."""
        keys: set[str] = set()
        for row, record in enumerate(self.records):
            self.seen += 1
            if self.job.text is None:
                refuse_unnamed(record)
            checked = check(record, self.job.limits)
            if record.key in keys:
                checked = Rejected("repeated key", record.key)
            keys.add(record.key)
            if isinstance(checked, Checked):
                for one in checked.left_out:
                    self.seen += 1
                    self._reject(record, Rejected("caption of several", f"{one.detail} ({one.reason})"))
                yield row, record.key, checked
            else:
                self._reject(record, checked)

    def _reject(self, record: Record, why: Rejected) -> None:
        self.rejects.append({"key": record.key, "origin": record.origin, "reason": why.reason, "detail": why.detail})


def refuse_unnamed(record: Record) -> None:
    """UserError if a record brings an embedding; for builds that were not told whose."""
    if record.embedding is not None:
        raise UserError(f"{record.origin} brings an embedding; say whose: --encoder NAME --max-tokens N")


def _write(job: Job, where: Place, records: _Good) -> tuple[list[Path], list[tuple[int, int, int]]]:
    """Shards of the good records; returns them and, of each sample, (pixel hash, row in all of them, captions)."""
    assert job.out is not None
    tars: list[Path] = []
    hashes: list[tuple[int, int, int]] = []
    captions: list[list[str]] = []
    bits: list[np.ndarray] = []

    def finish() -> None:
        """The sidecar of a shard that is complete."""
        tars.append(writer.path(len(tars)))
        if job.text is not None:
            # The source does not say what its encoder makes of "": none is stored, and training is told so.
            write_sidecar(tars[-1], job.text, captions, bits, np.empty((0, job.text.width), np.uint16))
        captions.clear()
        bits.clear()

    with ShardWriter(job.out, job.samples_per_shard, prefix=f"{where.name}-") as writer:
        for _, key, good in records:
            members = {good.extension: good.image, "txt": good.caption.encode()}
            if len(good.captions) > 1:
                members["json"] = pack(good.captions)
            writer.write({"__key__": key, **members})
            hashes.append((good.pixel_hash, len(hashes), len(good.captions)))
            captions.append(list(good.captions))
            bits += [] if good.bits is None else [good.bits]
            if writer.shards > len(tars):
                finish()
    if writer.shards > len(tars):
        finish()
    return tars, hashes


def _index(where: Place, records: _Good) -> tuple[list[Path], list[tuple[int, int, int]]]:
    """An index of the good records of a tar that stays as it is."""
    tar = where.path("tar")
    members = list(scan_tar(tar).samples.items())  # of a source with `in_place` records are samples, in order
    hashes: list[tuple[int, int, int]] = []
    for row, key, good in records:
        if why := _not_in_place(good, members[row][1]):
            origin = f"{tar.name}, {members[row][0]}"
            records.rejects.append({"key": key, "origin": origin, "reason": why.reason, "detail": why.detail})
        else:
            hashes.append((good.pixel_hash, row, len(good.captions)))
    index_shard(tar, keep={members[row][0] for _, row, _ in hashes})
    return [tar], hashes


def _not_in_place(good: Checked, members: Places) -> Rejected | None:
    """Why training would not find a good sample's picture or caption where it lies."""
    try:
        choose_image(members, 1)
    except BadSample:
        pictures = ", ".join(f".{name}" for name in members if name.rpartition(".")[2] in PICTURES)
        return Rejected("format", f"training does not read {pictures}; --copy converts it")
    if good.converted:
        return Rejected("format", "not jpeg, png or webp; --copy converts it")
    if good.caption and "txt" not in members:
        return Rejected("missing caption", "there is no .txt member; --copy makes one")
    for one in good.left_out:
        if one.reason != "empty caption":  # training passes over these
            return Rejected(one.reason, f"{one.detail}; --copy leaves this caption out")
    return None


def count_reasons(rows: Iterable[dict[str, str]]) -> dict[str, int]:
    """How often each reason occurs, the most frequent first."""
    counts = Counter(row["reason"] for row in rows)
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def write_lines(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Write JSON lines, atomically. What a source's broken text cannot say in UTF-8 is escaped."""
    with replacing(path) as temporary:
        temporary.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
