"""Nothing is lost: in every format, what looks like a sample is a good sample or a reject, no more, no less."""

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
from safetensors.torch import load_file
from samples import read_sample
from text_formats import compressed, csv_table, folder, json_file, jsonl, several, tsv_table
from things import Made, things

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


NOTICED = (AssertionError, KeyError, IndexError, BadSample)  # an index that names what is not there, or cannot be read


Break = Callable[[Iterator[Record]], Iterator[Record]]


@every_format
@pytest.mark.parametrize("records_per_part", [1000, 7])
@numbers_beyond_float32
def test_all_things_are_good_or_rejected(tmp_path, numbers, make, options, records_per_part):
    check(tmp_path, numbers, make, options, records_per_part)


def check(
    tmp_path: Path,
    numbers: dict[bytes, int],
    make: Callable[[Path], Made],
    options: dict[str, Any],
    records_per_part: int = 1000,
    broken: Break | None = None,
) -> None:
    """Build what `make` writes, with a source that `broken` spoils, and count everything again."""
    (tmp_path / "source").mkdir()
    made = make(tmp_path / "source")
    in_place = make in (shards_in_place, broken_tar) and not options
    out = None if in_place else tmp_path / "out"
    options = dict(options)
    name = options.pop("format", None)
    opener = partial(open_source, made.path, name, records_per_part=records_per_part)
    spoiled = opener if broken is None else lambda: Spoiled(opener(), broken)
    root = tmp_path / "source"
    result = build_source(spoiled, out, root=root, max_rejected=1, workers=1, progress=False, **options)
    rejected = Counter(result["rejected"])
    left_out = rejected["caption of several"]
    assert result["records"] == made.things + left_out == result["samples"] + sum(rejected.values())
    assert set(rejected) <= set(REASONS)

    where = out or root
    listed = [json.loads(line) for path in where.glob("*.jsonl") for line in path.read_text().splitlines()]
    assert Counter(row["reason"] for row in listed) == rejected
    arrived = list(samples(where, numbers, has_captions="encoder" not in options))
    assert len(set(arrived)) == len(arrived) == result["samples"]
    assert made.good <= set(arrived) <= made.good | made.maybe
    if "encoder" in options:
        assert [number for path in sorted(where.glob("*.text.safetensors")) for number in texts_in(path)] == arrived
    if not in_place:  # what lies in the tars, counted without an index: samples, and copies that no index names
        names = [name for path in where.glob("*.tar") for name in names_in(path)]
        copies = sum(len(path.read_text().splitlines()) for path in where.glob("*.duplicates.jsonl"))
        assert len({name.partition(".")[0] for name in names}) == len(arrived) + copies
    if "encoder" not in options:
        data = ShardedDataset(where)
        several = {row for row in range(len(data)) if len(data.captions(row)) > 1}
        assert result["captions"] == sum(len(data.captions(row)) for row in range(len(data)))
        # Of each row that another's record took: a caption in its sample, or its record is rejected and says so.
        joined = sum(int(row["origin"].split(" and ")[1].split()[0]) for row in listed if " more with" in row["origin"]
                     and row["reason"] != "caption of several")  # fmt: skip
        assert len(several) + joined == made.rows_of_others


def texts_in(path: Path) -> list[int]:
    """The numbers that the embeddings of a sidecar say."""
    stored = load_file(path)
    tokens = stored["tokens"].view(torch.bfloat16)[stored["offsets"][:-1]]
    return (16 * tokens[:, 0] + tokens[:, 1]).int().tolist()


def names_in(path: Path) -> list[str]:
    with tarfile.open(path) as tar:
        return tar.getnames()


class Spoiled:
    """A source that does not give its records as they are."""

    def __init__(self, source: Source, spoil: Break):
        self.source, self.spoil = source, spoil

    def __getattr__(self, name: str) -> Any:
        return getattr(self.source, name)

    def read(self, part: Part) -> Iterator[Record]:
        return self.spoil(self.source.read(part))


def loses_one(records: Iterator[Record]) -> Iterator[Record]:
    return (record for i, record in enumerate(records) if i != 2)


def loses_the_last(records: Iterator[Record]) -> Iterator[Record]:
    return iter(list(records)[:-1])


def loses_what_it_cannot_read(records: Iterator[Record]) -> Iterator[Record]:
    return (record for record in records if record.problem is None)


def gives_one_twice(records: Iterator[Record]) -> Iterator[Record]:
    for i, record in enumerate(records):
        yield record
        if i == 2:
            yield replace(record, key=f"{record.key}-again")


def gives_each_the_text_of_the_next(records: Iterator[Record]) -> Iterator[Record]:
    found = list(records)
    for record, other in zip(found, found[1:] + found[:1], strict=True):
        yield replace(record, caption=other.caption, embedding=other.embedding)


def gives_each_the_picture_of_the_next(records: Iterator[Record]) -> Iterator[Record]:
    found = list(records)
    for record, other in zip(found, found[1:] + found[:1], strict=True):
        yield replace(record, image=other.image)


SPOILED = (
    *(loses_one, loses_the_last, loses_what_it_cannot_read, gives_one_twice),
    *(gives_each_the_text_of_the_next, gives_each_the_picture_of_the_next),
)


@every_format
@pytest.mark.parametrize("broken", SPOILED, ids=lambda broken: broken.__name__)
@numbers_beyond_float32
def test_a_source_that_loses_or_mixes_things_is_noticed(tmp_path, numbers, make, options, broken):
    """The test above is able to fail."""
    in_place = make in (shards_in_place, broken_tar) and not options
    if in_place and broken is gives_each_the_text_of_the_next:
        pytest.skip("texts stay where they lie: what the source says of them is only checked")
    with pytest.raises(NOTICED):
        check(tmp_path, numbers, make, options, broken=broken)


def test_a_writer_that_loses_a_sample_is_noticed(tmp_path, numbers, monkeypatch):
    write, count = ShardWriter.write, iter(range(1000))
    monkeypatch.setattr(ShardWriter, "write", lambda self, sample: next(count) == 2 or write(self, sample))
    with pytest.raises(NOTICED):
        check(tmp_path, numbers, folder, {})


def test_a_list_of_rejects_that_lacks_one_is_noticed(tmp_path, numbers, monkeypatch):
    monkeypatch.setattr(parts, "write_lines", lambda path, rows: write_lines(path, rows[:-1]))
    with pytest.raises(NOTICED):
        check(tmp_path, numbers, folder, {})


def pixels(data: bytes) -> bytes:
    return decode(data).permute(1, 2, 0).numpy().tobytes()


@pytest.fixture(scope="module")
def numbers() -> dict[bytes, int]:
    """The number of each good picture, by its pixels."""
    plain_ones = (*range(200, 210), *range(300, 310), *range(500, 520))
    known = {pixels(encoded(picture(i), "PNG")): i for i in plain_ones}
    return known | {pixels(thing.image): thing.i for thing in things() if thing.defect is None}


def samples(where: Path, numbers: dict[bytes, int], has_captions: bool) -> Iterator[int]:
    """The number of each sample's picture, after seeing that its caption names it."""
    data = ShardedDataset(where)
    for row in range(len(data)):
        sample = read_sample(data, row)
        number = numbers[pixels(sample.members[choose_image(sample.members, 64)])]
        assert not has_captions or str(number) in sample.caption, (sample.key, sample.caption, number)
        yield number
