"""Build the shards of one part of a source, independently of all other parts.

A part writes shards with their indexes (for shards used in place, only the index), `NAME.rejected.jsonl` if records
were rejected, `NAME.hashes.npy` and, last, `NAME.report.json`. A part with a report is finished; one without it is
built again from the start.
"""

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from imagen.data.build.changes import file_states
from imagen.data.build.held_out import HeldOut, SplitWriters
from imagen.data.build.quality import AcceptedRecord, Limits, RejectedRecord, check
from imagen.data.shards.dataset import SPLITS
from imagen.data.shards.images import BadSample, choose_image
from imagen.data.shards.index import index_path, index_shard
from imagen.data.shards.tar_samples import MemberRanges, scan_tar
from imagen.data.sources.base import Part, Record, Source
from imagen.data.sources.webdataset import complete_samples
from imagen.errors import UserError
from imagen.files import read_json, replacing, write_json
from imagen.pictures.names import PICTURES
from imagen.text.config import TextConfig

# Version of the reader of tars used in place. `hashes.npy` refers to samples by number, so another version rebuilds.
_SCAN = 3
_Hash = tuple[int, int, int]  # of a sample: pixel hash, row, number of captions


@dataclass(frozen=True, kw_only=True)
class BuildConfig:
    """Settings of a build that its parts need."""

    out: Path | None  # None: the source's tars are used in place
    limits: Limits = field(default_factory=Limits)
    samples_per_shard: int = 1000
    keep_duplicates: bool = False
    held_out: HeldOut | None = None  # None: all samples are for training
    text: TextConfig | None = None  # describes the embeddings in the source; None: it has none
    build: str = ""  # hash of all arguments; reports with another hash are ignored


@dataclass(frozen=True)
class PartFiles:
    """Paths of a part's files: the folder, and the name they begin with."""

    folder: Path
    name: str

    def path(self, ending: str) -> Path:
        return self.folder / f"{self.name}.{ending}"

    def tars(self, report: dict[str, Any]) -> list[Path]:
        return [self.folder / name for name in report["shards"]]


def part_files(config: BuildConfig, source: Source, number: int, part: Part) -> PartFiles:
    """Return the paths of a part: named by its number in `config.out`, or beside its tar."""
    if config.out is not None:
        return PartFiles(config.out, f"{number:05d}")
    tar = Path(source.tar(part))  # type: ignore[attr-defined]  # a source with `in_place`
    return PartFiles(tar.parent, tar.name.removesuffix(".tar"))


def finished_report(config: BuildConfig, files: PartFiles) -> dict[str, Any] | None:
    """Return the report of a finished part; None if it is not finished or one of its files is missing."""
    if not files.path("report.json").exists():
        return None
    report = read_json(files.path("report.json"))
    whole = files.path("hashes.npy").exists() and all(
        tar.exists() and index_path(tar).exists() and tar.stat().st_size == size
        for tar, size in zip(files.tars(report), report["shard_bytes"], strict=True)
    )
    as_now = config.out is not None or report.get("scan") == _SCAN
    return report if whole and as_now and report["build"] == config.build else None


def build_part(config: BuildConfig, source: Source, number: int, part: Part) -> dict[str, Any]:
    """Check one part's records, write its files and return its report.

    The files depend only on the part and on `config`. Raises UserError if a file of the source is missing, if
    `config.out` is not writable, or if the source has embeddings and `config.text` is None.
    """
    files = part_files(config, source, number, part)
    # The report first, because without it the part is unfinished. Shards remain: most get the same bytes again.
    for ending in ("report.json", "hashes.npy", "rejected.jsonl", "duplicates.jsonl"):
        files.path(ending).unlink(missing_ok=True)
    states = [] if config.out is None else file_states(source, part)  # before they are read
    rejects: list[dict[str, str]] = []
    records = _AcceptedRecords(config, source.read(part), rejects)
    if config.out is None:
        tars, hashes = _index(files, records)
    else:
        tars, hashes = _write(config, files, records)
        _delete_others(files, tars)
    if rejects:
        write_lines(files.path("rejected.jsonl"), rejects)
    with replacing(files.path("hashes.npy")) as temporary, open(temporary, "wb") as file:
        np.save(file, np.array(hashes, np.uint64).reshape(-1, 3))
    report = {
        "build": config.build,
        "records": records.seen,
        "good": len(hashes),
        "captions": sum(captions for _, _, captions in hashes),
        "rejected": count_reasons(rejects),
        "shards": [tar.relative_to(files.folder).as_posix() for tar in tars],
        "shard_bytes": [tar.stat().st_size for tar in tars],
        **({"scan": _SCAN} if config.out is None else {}),
        **({"source": " ".join(states)} if states else {}),
    }
    write_json(files.path("report.json"), report)
    return report


class _AcceptedRecords:
    """Iterate over the accepted records of a part; count all records and collect the rejected ones."""

    def __init__(self, config: BuildConfig, records: Iterable[Record], rejects: list[dict[str, str]]):
        self.config, self.records, self.rejects = config, records, rejects
        self.seen = 0  # records, plus rejected captions of accepted records

    def __iter__(self) -> Iterator[tuple[int, str, AcceptedRecord]]:
        """Yield (row in the part, key, accepted record)."""
        keys: set[str] = set()
        for row, record in enumerate(self.records):
            self.seen += 1
            if self.config.text is None:
                refuse_unnamed(record)
            checked = check(record, self.config.limits)
            if record.key in keys:
                checked = RejectedRecord("repeated key", record.key)
            keys.add(record.key)
            if isinstance(checked, AcceptedRecord):
                for one in checked.rejected_captions:
                    self.seen += 1
                    self._reject(record, RejectedRecord("caption of several", f"{one.detail} ({one.reason})"))
                yield row, record.key, checked
            else:
                self._reject(record, checked)

    def _reject(self, record: Record, why: RejectedRecord) -> None:
        self.rejects.append({"key": record.key, "origin": record.origin, "reason": why.reason, "detail": why.detail})


def refuse_unnamed(record: Record) -> None:
    """Raise UserError if a record has an embedding although the build names no encoder."""
    if record.embedding is not None:
        raise UserError(f"{record.origin} has an embedding; name its encoder: --encoder NAME --max-tokens N")


def _write(config: BuildConfig, files: PartFiles, records: _AcceptedRecords) -> tuple[list[Path], list[_Hash]]:
    """Write shards of the accepted records; return their paths and per sample (pixel hash, row, captions)."""
    assert config.out is not None
    shards = SplitWriters(config.out, config.samples_per_shard, f"{files.name}-", config.text, config.held_out)
    with shards:
        for _, key, good in records:
            shards.write(key, good, config.limits.sizes)
    return shards.tars, shards.hashes


def _delete_others(files: PartFiles, tars: list[Path]) -> None:
    """Delete shards of an earlier, unfinished build of the part from files that have changed since."""
    ours = re.compile(rf"({re.escape(files.name)}-\d+)\..+")
    for folder in (files.folder, *(files.folder / split for split in SPLITS)):
        kept = {tar.stem for tar in tars if tar.parent == folder}
        for path in list(folder.glob(f"{files.name}-*")):
            match = ours.fullmatch(path.name)
            if match and match[1] not in kept:
                path.unlink(missing_ok=True)


def _index(files: PartFiles, records: _AcceptedRecords) -> tuple[list[Path], list[_Hash]]:
    """Index the accepted records of a tar, which remains unchanged; return it, and per sample as `_write`."""
    tar = files.path("tar")
    scan = scan_tar(tar)
    complete = list(complete_samples(scan).items())  # in_place: records are these samples, in order
    numbers = {name: number for number, name in enumerate(scan.samples)}
    hashes: list[_Hash] = []
    kept = set()
    for row, key, good in records:
        name, members = complete[row]
        if why := _not_in_place(good, members):
            origin = f"{tar.name}, {name}"
            records.rejects.append({"key": key, "origin": origin, "reason": why.reason, "detail": why.detail})
        else:
            hashes.append((good.pixel_hash, numbers[name], len(good.captions)))
            kept.add(name)
    index_shard(tar, keep=kept)
    return [tar], hashes


def _not_in_place(good: AcceptedRecord, members: MemberRanges) -> RejectedRecord | None:
    """Return why training could not read the image or caption of an accepted record in its tar; None if it can."""
    try:
        choose_image(members, 1)
    except BadSample:
        pictures = ", ".join(f".{name}" for name in members if name.rpartition(".")[2] in PICTURES)
        return RejectedRecord("format", f"training does not read {pictures}; --copy converts it")
    if good.converted:
        return RejectedRecord("format", "not jpeg, png or webp; --copy converts it")
    if good.caption and "txt" not in members:
        return RejectedRecord("missing caption", "there is no .txt member; --copy writes one")
    for one in good.rejected_captions:
        if one.reason != "empty caption":  # training skips empty captions
            return RejectedRecord(one.reason, f"{one.detail}; --copy omits this caption")
    return None


def count_reasons(rows: Iterable[dict[str, str]]) -> dict[str, int]:
    """Count the reasons, the most frequent first."""
    counts = Counter(row["reason"] for row in rows)
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def write_lines(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Write JSON lines, atomically; text that is not valid UTF-8 is escaped."""
    with replacing(path) as temporary:
        temporary.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
