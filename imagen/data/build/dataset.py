"""Build shards from any source of pairs: build parts in parallel, remove duplicates, write the result.

Parts are independent, so a killed build resumes, and its bytes do not depend on the number of processes. `build.json`
contains the arguments from the start and the result at the end.
"""

import hashlib
import json
import math
import os
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any

from imagen.data.build.changes import changed_file
from imagen.data.build.duplicates import drop_duplicates
from imagen.data.build.engines import Engine, Processes
from imagen.data.build.held_out import HELD_OUT, HeldOut
from imagen.data.build.masters import check_sizes
from imagen.data.build.parts import (
    BuildConfig,
    PartFiles,
    build_part,
    finished_report,
    part_files,
    refuse_unnamed,
)
from imagen.data.build.quality import BESIDE_SAMPLES, Limits, remedy
from imagen.data.shards.dataset import SPLITS
from imagen.data.shards.index import index_samples
from imagen.data.shards.remote import as_url
from imagen.data.sources.base import Part, Source
from imagen.data.sources.files import BUILD_FORMAT
from imagen.data.sources.values import printable
from imagen.errors import UserError, check_number
from imagen.files import LOCK, locked, read_json, write_json
from imagen.progress import progress_bar
from imagen.text.config import TextConfig, absolute

_ENDINGS = ("tar", "index.safetensors", "report.json", "hashes.npy", "rejected.jsonl", "duplicates.jsonl")
SAMPLES_PER_SHARD = 1000
_WIDTH_FROM = 100  # embeddings read to find their most common dimension


def build(
    path: str | Path,
    out: str | Path | None = None,
    *,
    format: str | None = None,
    image_column: str | None = None,
    caption_column: str | None = None,
    images: str | Path | None = None,
    caption_from: str | None = None,
    cache: str | Path | None = None,
    copy: bool = False,
    keep_duplicates: bool = False,
    **options: Any,
) -> dict[str, Any]:
    """Build shards of the pairs at `path`, a file, folder or URL, and return the result.

    options: as for `build_source`. cache: folder of downloads from a URL; default: ~/.cache/imagen/sources.
    Existing shards are used in place, without `out`, unless `copy`. Raises UserError for a cache with a local source,
    and as `build_source` does.
    """
    from imagen.data.sources import open_source

    if cache is not None and not as_url(path):
        raise UserError(f"--cache {cache} is a folder for downloads, but {path} is a local source: omit --cache")
    opener = partial(
        open_source,
        path if as_url(path) else Path(path),
        format,
        image_column=image_column,
        caption_column=caption_column,
        images=images,
        caption_from=caption_from,
        join_rows=not keep_duplicates,
        cache=None if cache is None else Path(cache),
    )
    columns = {"image_column": image_column, "caption_column": caption_column}
    columns |= {} if caption_from is None else {"caption_from": caption_from}
    columns |= {} if images is None else {"images": str(images)}
    root = Path(path) if Path(path).is_dir() else Path(path).parent
    out = None if out is None else Path(out)
    options |= {"copy": copy, "keep_duplicates": keep_duplicates}
    return build_source(opener, out, root=root, columns=columns, **options)


def build_source(
    opener: Callable[[], Source],
    out: Path | None,
    *,
    root: Path | None = None,
    copy: bool = False,
    columns: dict[str, Any] | None = None,
    limits: Limits | None = None,
    samples_per_shard: int | None = None,
    keep_duplicates: bool = False,
    held_out: float = 0.0,
    seed: int = 0,
    max_rejected: float = 0.5,
    encoder: str | None = None,
    max_tokens: int | None = None,
    workers: int | None = None,
    engine: Engine | None = None,
    progress: bool = True,
    report: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Build shards in `out` from the source that `opener` (picklable) opens; return the result stored in `build.json`.

    A source with `in_place` is indexed where it is, below `root`, unless `copy`.
    samples_per_shard: default: 1,000.
    held_out: share of samples that are written to `out`/heldout instead of `out`/train, chosen by `seed` and key.
    encoder, max_tokens: describe the embeddings in the source, if it has any.
    workers: processes (default: one per core, at most 16). A script that uses several needs the usual
        `if __name__ == "__main__":`. `engine` replaces them.
    report: receives a line if the build was finished already.

    May be killed and run again: finished parts are not repeated, unless their files have changed. Raises UserError if
    `out` contains a build with other arguments, a finished one whose source has changed, or anything else. Raises
    UserError after the build has finished if all records, or a larger share than `max_rejected`, were rejected.
    """
    limits = limits or Limits()
    _check(limits, max_rejected, encoder, max_tokens)
    check_number("--held-out", held_out, least=0, below=1)
    source = opener()
    in_place = getattr(source, "in_place", False) and not copy
    if in_place and out is not None and out.resolve() != Path(root or out).resolve():
        raise UserError(f"the source consists of shards, which are used in place: omit --out {out}, or give --copy")
    if in_place and held_out:
        raise UserError(
            "the source consists of shards, which are used in place; --held-out writes new ones: give --copy --out, "
            "or move some tars into folders train and heldout"
        )
    if in_place and samples_per_shard is not None:
        raise UserError(
            "the source consists of shards, which are used in place; --samples-per-shard writes new ones: "
            "give --copy --out"
        )
    samples_per_shard = SAMPLES_PER_SHARD if samples_per_shard is None else samples_per_shard
    if not in_place and out is None:
        raise UserError("--out is missing: the folder to build (only shards are used in place)")
    if in_place and hasattr(source, "check_in_place"):
        source.check_in_place()
    check_sizes(limits.sizes, in_place)
    target = Path(root or ".") if in_place or out is None else out
    parts = source.parts()
    checked = {name: value for name, value in asdict(limits).items() if name not in ("embedding_width", "sizes")}
    arguments = {
        "source": {
            "reader": type(source).__name__,
            **(columns or {}),
            "parts": None if in_place else _digest(list(parts)),
        },
        "in_place": in_place,
        "limits": checked | {"max_tokens": max_tokens},
        "samples_per_shard": samples_per_shard,
        "keep_duplicates": keep_duplicates,
        "encoder": encoder,
        **({"held_out": held_out, "held_out_seed": seed} if held_out else {}),
    }
    if limits.sizes:
        arguments["sizes"] = list(limits.sizes)
    text = None
    if encoder is not None and max_tokens is not None:
        text = TextConfig(encoder=absolute(encoder), max_tokens=max_tokens, width=_width(source, parts))
        limits = replace(limits, max_tokens=max_tokens, embedding_width=text.width)
    elif not (target / "build.json").exists():  # before build.json records that no encoder was named
        for record in islice(chain.from_iterable(map(source.read, parts)), 10):
            refuse_unnamed(record)
    config = BuildConfig(
        out=None if in_place else target,
        limits=limits,
        samples_per_shard=samples_per_shard,
        keep_duplicates=keep_duplicates,
        held_out=HeldOut(held_out, seed) if held_out else None,
        text=text,
        build=_digest(arguments),
    )
    with locked(target, f"another process is building {target}; wait for it"):
        _start(target, arguments, in_place)
        result = _run(config, opener, source, parts, target, arguments, engine or Processes(workers), progress, report)
    check_rejected(target, result, max_rejected, _kind(source, in_place))
    return result


def _kind(source: Source, in_place: bool) -> str:
    """Return the kind of source as `remedy` takes it."""
    if in_place:
        return "tars in place"
    return "table" if getattr(source, "has_columns", False) else type(source).__name__.lower()


def _run(
    config: BuildConfig,
    opener: Callable[[], Source],
    source: Source,
    parts: Sequence[Part],
    target: Path,
    arguments: dict[str, Any],
    engine: Engine,
    progress: bool,
    report: Callable[[str], None],
) -> dict[str, Any]:
    """Build the missing parts, drop duplicates, write and return the result."""
    part_list = [part_files(config, source, number, part) for number, part in enumerate(parts)]
    endings = _ENDINGS if config.out is None else (*_ENDINGS, "text.safetensors")
    folders = {files.folder for files in part_list}
    folders |= set() if config.held_out is None else {target / split for split in SPLITS}
    for folder in folders:
        _sweep(folder, endings)
    described = read_json(target / "build.json")
    reports = [finished_report(config, files) for files in part_list]
    if config.out is not None:
        _drop_changed(reports, source, parts, target, is_finished="result" in described)
    missing = [number for number, one in enumerate(reports) if one is None]
    if not missing and described.get("result", {}).get("parts") == len(parts):
        report(_already_built(target, in_place=config.out is None))
        return described["result"]
    write_json(target / "build.json", {"format": BUILD_FORMAT, "arguments": arguments})
    with progress_bar(total=len(parts), initial=len(parts) - len(missing), unit=" parts", disable=not progress) as bar:
        items = [(number, parts[number]) for number in missing]
        for i, built in engine.map(partial(_Parts, config, opener), items, probe_file=target / "build.json"):
            reports[missing[i]] = built
            bar.set_postfix_str(f"{sum(one['records'] for one in reports if one is not None):,} records", refresh=False)
            bar.update()
    for folder in folders:  # temporary files of killed workers whose parts other workers have built
        _sweep(folder, endings)
    done = [one for one in reports if one is not None]
    duplicates, duplicate_captions = (0, 0) if config.keep_duplicates else drop_duplicates(config, part_list, done)
    rejected: Counter[str] = Counter({"duplicate": duplicates} if duplicates else {})
    for one in done:
        rejected.update(one["rejected"])
    result = {
        "parts": len(parts),
        "records": sum(one["records"] for one in done),
        "samples": sum(one["good"] for one in done) - duplicates,
        "captions": sum(one.get("captions", one["good"]) for one in done) - duplicate_captions,
        "shards": sum(len(one["shards"]) for one in done),
        "rejected": dict(sorted(rejected.items(), key=lambda item: (-item[1], item[0]))),
    }
    if config.held_out is not None:
        result["held_out"] = _held_out_samples(part_list, done)
    write_json(target / "build.json", {"format": BUILD_FORMAT, "arguments": arguments, "result": result})
    return result


def _drop_changed(
    reports: list[dict[str, Any] | None], source: Source, parts: Sequence[Part], target: Path, is_finished: bool
) -> None:
    """Drop the reports of parts whose files have changed, so that they are built again.

    Raises UserError if the whole build is finished: runs may have been trained on it.
    """
    for number, report in enumerate(reports):
        if report is None or (file := changed_file(source, parts[number], report)) is None:
            continue
        if is_finished:
            raise UserError(
                f"{printable(file)} has changed since {target} was built from it; to build anew, choose another folder "
                f"or delete {target}"
            )
        reports[number] = None


def _already_built(target: Path, in_place: bool) -> str:
    if in_place:
        return f"{target}: all tars were checked already"
    return f"{target} was built already, and its source is not read again; to build anew, delete {target}"


def _held_out_samples(parts: list[PartFiles], reports: list[dict[str, Any]]) -> int:
    tars = [tar for files, report in zip(parts, reports, strict=True) for tar in files.tars(report)]
    return sum(index_samples(tar) for tar in tars if tar.parent.name == HELD_OUT)


class _Parts:
    """Build parts of one source; each worker opens the source once."""

    def __init__(self, config: BuildConfig, opener: Callable[[], Source]):
        self.config, self.source = config, opener()

    def __call__(self, item: tuple[int, Part]) -> dict[str, Any]:
        number, part = item
        return build_part(self.config, self.source, number, part)


def _check(limits: Limits, max_rejected: float, encoder: str | None, max_tokens: int | None) -> None:
    check_number("--min-side", limits.min_side, least=1)
    check_number("--max-aspect", limits.max_aspect, least=1)
    check_number("--max-caption", limits.max_caption, least=1)
    check_number("--max-rejected", max_rejected, least=0, most=1)
    if (encoder is None) != (max_tokens is None):
        raise UserError("--encoder and --max-tokens must be given together; they describe embeddings in the source")


def _start(target: Path, arguments: dict[str, Any], in_place: bool) -> None:
    """Write `build.json` of this build. Raises UserError if `target` contains another build or anything else."""
    file = target / "build.json"
    _sweep(target, ("build.json",))
    if not file.exists():
        if not in_place and any(path.name != LOCK for path in target.iterdir()):
            raise UserError(f"{target} is not an empty folder; choose another one")
        write_json(file, {"format": BUILD_FORMAT, "arguments": arguments})
        return
    described = read_json(file)
    if not isinstance(described, dict) or described.get("format") != BUILD_FORMAT:
        raise UserError(f"{file} is not of this version; choose another folder or delete it")
    if described["arguments"] != arguments:
        remedy = f"delete {file} to check everything again" if in_place else "choose another folder or delete it"
        raise UserError(f"{target} contains a build {_difference(described['arguments'], arguments)}; {remedy}")


def _sweep(folder: Path, endings: Sequence[str]) -> None:
    """Remove temporary files of killed processes from `folder`, for files with these endings."""
    ours = re.compile(rf"\.(?:.+\.)?(?:{'|'.join(map(re.escape, endings))})\.[\w-]+\.tmp")
    if folder.is_dir():
        for name in [entry.name for entry in os.scandir(folder) if ours.fullmatch(entry.name)]:
            (folder / name).unlink(missing_ok=True)


def _difference(before: dict[str, Any], now: dict[str, Any]) -> str:
    """Describe the first argument that differs."""
    for name in (*before["limits"], *now["limits"]):
        if before["limits"].get(name) != now["limits"].get(name):
            return f"with {name} {before['limits'].get(name)}, not {now['limits'].get(name)}"
    for name in sorted({*before, *now}, key=str):
        if name != "source" and before.get(name) != now.get(name):
            return f"with {name} {before.get(name)}, not {now.get(name)}"
    return "of another source (or its files have changed)"


def _width(source: Source, parts: Sequence[Part]) -> int:
    """Return the embedding dimension of the source: the most common one among the first embeddings."""
    records = islice(chain.from_iterable(map(source.read, parts)), 10 * _WIDTH_FROM)
    found = (record.embedding for record in records if record.embedding is not None and record.embedding.ndim == 2)
    widths = Counter(embedding.shape[1] for embedding in islice(found, _WIDTH_FROM))
    if not widths:
        raise UserError("the source has no embeddings; omit --encoder, and run `imagen data encode` afterwards")
    return widths.most_common(1)[0][0]


def check_rejected(target: Path, result: dict[str, Any], max_rejected: float, kind: str) -> None:
    """Raise UserError if all records, or a larger share than `max_rejected`, were rejected."""
    counts = {reason: count for reason, count in result["rejected"].items() if reason not in BESIDE_SAMPLES}
    beside = sum(result["rejected"].values()) - sum(counts.values())
    records, rejected = result["records"] - beside, sum(counts.values())
    if records == 0:
        raise UserError(f"{target}: the source has no records")
    if rejected > max_rejected * records or result["samples"] == 0:
        first = list(counts.items())[:3]
        reasons = ", ".join(f"{reason} {count:,}" for reason, count in first)
        limit = f", more than --max-rejected {max_rejected:g} allows" if result["samples"] else ""
        remedies = [f"for {reason}: {words}" for reason, _ in first if (words := remedy(reason, kind))]
        if result["samples"]:
            remedies.append(f"--max-rejected {math.ceil(rejected / records * 100) / 100:g} accepts the data unchanged")
        advice = f"; {'; '.join(remedies)}" if remedies else ""
        raise UserError(
            f"{target}: {rejected:,} of {records:,} records were rejected{limit}: {reasons}{advice}; "
            f"the accepted records remain; `imagen data inspect {target}` shows the rejected ones"
        )


def _digest(value: Any) -> str:
    return hashlib.blake2b(json.dumps(value, sort_keys=True).encode(), digest_size=16).hexdigest()
