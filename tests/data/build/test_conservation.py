"""Check for every format that a build turns each pair into exactly one sample or one rejected record."""

import json
import tarfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from binary_formats import broken_tar, cc12m, damaged_parquet, huggingface, laion, parquet, shards, shards_in_place
from corpus import encoded, picture
from planted_pairs import WrittenSource, planted_pairs
from safetensors.torch import load_file
from samples import read_sample
from text_formats import compressed, csv_table, folder, json_file, jsonl, several, tsv_table

from imagen.data.build import parts
from imagen.data.build.dataset import build_source
from imagen.data.build.parts import write_lines
from imagen.data.build.quality import REASONS
from imagen.data.loading.transforms import decode
from imagen.data.shards.dataset import ShardedDataset
from imagen.data.shards.images import BadSample, choose_image
from imagen.data.shards.writer import ShardWriter
from imagen.data.sources import Part, Record, Source, open_source

FORMATS = [
    (folder, {}),
    (csv_table, {}),
    (tsv_table, {}),
    (jsonl, {}),
    (json_file, {}),
    (several, {}),
    (compressed, {}),
    (parquet, {}),
    (damaged_parquet, {}),
    (huggingface, {}),
    (shards, {"copy": True}),
    (shards_in_place, {}),
    (broken_tar, {"copy": True}),
    (broken_tar, {}),
    (laion, {"format": "laion_400m"}),
    (cc12m, {"format": "cc12m_base64", "encoder": "e", "max_tokens": 16}),
]


every_format = pytest.mark.parametrize(
    "make, options", FORMATS, ids=lambda value: "-".join(value) if isinstance(value, dict) else value.__name__
)


numbers_beyond_float32 = pytest.mark.filterwarnings("ignore::RuntimeWarning")


# An index with missing members, or one that cannot be read.
DETECTED = (AssertionError, KeyError, IndexError, BadSample)


Fault = Callable[[Iterator[Record]], Iterator[Record]]


@every_format
@pytest.mark.parametrize("records_per_part", [1000, 7])
@numbers_beyond_float32
def test_every_pair_becomes_a_sample_or_a_rejected_record(tmp_path, numbers, make, options, records_per_part):
    check(tmp_path, numbers, make, options, records_per_part)


def check(
    tmp_path: Path,
    numbers: dict[bytes, int],
    make: Callable[[Path], WrittenSource],
    options: dict[str, Any],
    records_per_part: int = 1000,
    broken: Fault | None = None,
) -> None:
    """Build the source that `make` writes, with records altered by `broken`, and count everything again."""
    (tmp_path / "source").mkdir()
    written = make(tmp_path / "source")
    in_place = make in (shards_in_place, broken_tar) and not options
    out = None if in_place else tmp_path / "out"
    options = dict(options)
    name = options.pop("format", None)
    opener = partial(open_source, written.path, name, records_per_part=records_per_part)
    faulty = opener if broken is None else lambda: FaultySource(opener(), broken)
    root = tmp_path / "source"
    result = build_source(faulty, out, root=root, max_rejected=1, workers=1, progress=False, **options)
    rejected = Counter(result["rejected"])
    further_captions = rejected["caption of several"]
    assert result["records"] == written.pairs + further_captions == result["samples"] + sum(rejected.values())
    assert set(rejected) <= set(REASONS)

    built = out or root
    listed = [json.loads(line) for path in built.glob("*.jsonl") for line in path.read_text().splitlines()]
    assert Counter(row["reason"] for row in listed) == rejected
    arrived = list(sample_numbers(built, numbers, has_captions="encoder" not in options))
    assert len(set(arrived)) == len(arrived) == result["samples"]
    assert written.good <= set(arrived) <= written.good | written.maybe
    if "encoder" in options:
        assert [
            number for path in sorted(built.glob("*.text.safetensors")) for number in numbers_in_sidecar(path)
        ] == arrived
    if not in_place:  # count the tars' members without their indexes: samples, and duplicates that no index names
        names = [name for path in built.glob("*.tar") for name in member_names(path)]
        copies = sum(len(path.read_text().splitlines()) for path in built.glob("*.duplicates.jsonl"))
        assert len({name.partition(".")[0] for name in names}) == len(arrived) + copies
    if "encoder" not in options:
        data = ShardedDataset(built)
        several = {row for row in range(len(data)) if len(data.captions(row)) > 1}
        assert result["captions"] == sum(len(data.captions(row)) for row in range(len(data)))
        # Each row that was joined to another is a caption of its sample, or its record is rejected with that reason.
        joined = sum(int(row["origin"].split(" and ")[1].split()[0]) for row in listed if " more with" in row["origin"]
                     and row["reason"] != "caption of several")  # fmt: skip
        assert len(several) + joined == written.caption_rows


def numbers_in_sidecar(path: Path) -> list[int]:
    """Return the image numbers that the embeddings of a sidecar encode."""
    stored = load_file(path)
    tokens = stored["tokens"].view(torch.bfloat16)[stored["offsets"][:-1]]
    return (16 * tokens[:, 0] + tokens[:, 1]).int().tolist()


def member_names(path: Path) -> list[str]:
    with tarfile.open(path) as tar:
        return tar.getnames()


class FaultySource:
    """A source with faults: `alter` changes the records of each part."""

    def __init__(self, source: Source, alter: Fault):
        self.source, self.alter = source, alter

    def __getattr__(self, name: str) -> Any:
        return getattr(self.source, name)

    def read(self, part: Part) -> Iterator[Record]:
        return self.alter(self.source.read(part))


def drops_one_record(records: Iterator[Record]) -> Iterator[Record]:
    return (record for i, record in enumerate(records) if i != 2)


def drops_the_last_record(records: Iterator[Record]) -> Iterator[Record]:
    return iter(list(records)[:-1])


def drops_unreadable_records(records: Iterator[Record]) -> Iterator[Record]:
    return (record for record in records if record.problem is None)


def repeats_one_record(records: Iterator[Record]) -> Iterator[Record]:
    for i, record in enumerate(records):
        yield record
        if i == 2:
            yield replace(record, key=f"{record.key}-again")


def shifts_the_captions(records: Iterator[Record]) -> Iterator[Record]:
    found = list(records)
    for record, other in zip(found, found[1:] + found[:1], strict=True):
        yield replace(record, caption=other.caption, embedding=other.embedding)


def shifts_the_images(records: Iterator[Record]) -> Iterator[Record]:
    found = list(records)
    for record, other in zip(found, found[1:] + found[:1], strict=True):
        yield replace(record, image=other.image)


FAULTS = (
    *(drops_one_record, drops_the_last_record, drops_unreadable_records, repeats_one_record),
    *(shifts_the_captions, shifts_the_images),
)


@every_format
@pytest.mark.parametrize("broken", FAULTS, ids=lambda broken: broken.__name__)
@numbers_beyond_float32
def test_a_source_that_drops_or_mixes_records_is_detected(tmp_path, numbers, make, options, broken):
    """Verify that the check above fails for faulty sources."""
    in_place = make in (shards_in_place, broken_tar) and not options
    if in_place and broken is shifts_the_captions:
        pytest.skip("captions are used in place, so the build does not copy those of the source")
    with pytest.raises(DETECTED):
        check(tmp_path, numbers, make, options, broken=broken)


def test_a_writer_that_drops_a_sample_is_detected(tmp_path, numbers, monkeypatch):
    write, count = ShardWriter.write, iter(range(1000))
    monkeypatch.setattr(ShardWriter, "write", lambda self, sample: next(count) == 2 or write(self, sample))
    with pytest.raises(DETECTED):
        check(tmp_path, numbers, folder, {})


def test_an_incomplete_quarantine_table_is_detected(tmp_path, numbers, monkeypatch):
    monkeypatch.setattr(parts, "write_lines", lambda path, rows: write_lines(path, rows[:-1]))
    with pytest.raises(DETECTED):
        check(tmp_path, numbers, folder, {})


def pixels(data: bytes) -> bytes:
    return decode(data).permute(1, 2, 0).numpy().tobytes()


@pytest.fixture(scope="module")
def numbers() -> dict[bytes, int]:
    """Return the numbers of the good images, by their pixels."""
    plain_ones = (*range(200, 210), *range(300, 310), *range(500, 520))
    known = {pixels(encoded(picture(i), "PNG")): i for i in plain_ones}
    return known | {pixels(pair.image): pair.i for pair in planted_pairs() if pair.defect is None}


def sample_numbers(folder: Path, numbers: dict[bytes, int], has_captions: bool) -> Iterator[int]:
    """Yield the image number of each sample, after checking that the caption contains it."""
    data = ShardedDataset(folder)
    for row in range(len(data)):
        sample = read_sample(data, row)
        number = numbers[pixels(sample.members[choose_image(sample.members, 64)])]
        assert not has_captions or str(number) in sample.caption, (sample.key, sample.caption, number)
        yield number
