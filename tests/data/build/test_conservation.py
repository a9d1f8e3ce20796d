"""Nothing is lost: in every format, the things that look like a sample are good samples and rejects, no more, no less.

Each format carries the defects of `corpus.py` that it can express, and those that only it can have.
"""

import base64
import csv
import gzip
import io
import json
import os
import tarfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from corpus import DEFECTS as PLANTED
from corpus import FURTHER_DEFECTS, GOOD, encoded, picture
from safetensors.torch import load_file
from samples import read_sample

from imagen.data.build import parts
from imagen.data.build.dataset import build_source
from imagen.data.build.parts import write_lines
from imagen.data.build.quality import REASONS
from imagen.data.loading.transforms import choose_image, decode
from imagen.data.shards.dataset import BadSample, ShardedDataset
from imagen.data.shards.writer import ShardWriter
from imagen.data.sources import Part, Record, Source, open_source

DEFECTS = PLANTED | FURTHER_DEFECTS
COPIES = ("the same file again", "the same pixels in another format")


@dataclass
class Thing:
    """A pair as it was meant: picture number `i`, and a caption that says so."""

    i: int
    ending: str
    image: bytes
    caption: bytes | None
    defect: str | None = None


@dataclass
class Made:
    """What a format was given."""

    path: Path
    things: int = 0
    good: set[int] = field(default_factory=set)  # numbers of those that must arrive
    maybe: set[int] = field(default_factory=set)  # of those that may
    rows_of_others: int = 0  # rows with further captions of pictures that are things already

    def add(self, thing: Thing, is_good: bool | None = None) -> None:
        self.things += 1
        if thing.defect is None if is_good is None else is_good:
            self.good.add(thing.i)


def plain(i: int) -> Thing:
    return Thing(i, "png", encoded(picture(i), "PNG"), b"picture %d" % i)


def things() -> list[Thing]:
    """Good ones of all kinds, then one of each defect of contents."""
    made = [plain(0)]
    for i, (ending, make) in enumerate(GOOD.values(), 1):
        made.append(Thing(i, ending, make(i), b"picture %d" % i))
    for i, (name, (_, ending, bad_picture, bad_caption)) in enumerate(DEFECTS.items(), 100):
        image = (bad_picture or GOOD["png"][1])(i)
        if name in COPIES:  # of the first one
            image = encoded(picture(0), "PNG" if name == COPIES[0] else "BMP")
        caption = None if name == "no caption" else (bad_caption or (lambda i: b"picture %d" % i))(i)
        made.append(Thing(i, ending, image, caption, name))
    return made


# --- a folder of each format


def folder(root: Path) -> Made:
    made = Made(root)
    for thing in things():
        path = root / ("deep" if thing.i % 2 else ".") / f"{thing.i}.{thing.ending}"
        path.parent.mkdir(exist_ok=True)
        if thing.defect == "link to a missing file":
            path.symlink_to("nowhere.jpg")
        else:
            path.write_bytes(thing.image)
        if thing.caption is not None:
            path.with_suffix(".txt").write_bytes(thing.caption)
        made.add(thing)
    for i, ending in enumerate(
        ["jfif", "jpe", "pjpeg", "JPG", "avif", "jp2", "dib", "apng", "heic", "jxl", "cr2", "svg", "psd"], 200
    ):
        (root / f"{i}.{ending}").write_bytes(encoded(picture(i), "PNG") if i < 204 else b"no picture of a known kind")
        (root / f"{i}.txt").write_text(f"picture {i}")
        made.add(plain(i), is_good=i < 204)
    os.mkfifo(root / "300.jpg")
    (root / "301.jpg").symlink_to("/dev/zero")
    (root / "302.txt").write_text("picture 302, which is not there")
    (root / "303.json").mkdir()
    (root / "303.jpg").write_bytes(encoded(picture(303), "PNG"))
    (root / "304.jpg").write_bytes(encoded(picture(304), "PNG"))
    (root / "304.json").write_text("[" * 5000)
    (root / os.fsdecode(b"caf\xe9 305.png")).write_bytes(encoded(picture(305), "PNG"))
    (root / os.fsdecode(b"caf\xe9 305.txt")).write_text("picture 305")
    (root / "306.jpg").write_bytes(encoded(picture(306), "PNG"))
    (root / "306.png").write_bytes(encoded(picture(307), "PNG"))
    (root / "306.txt").write_text("picture 306 or 307")  # one caption for both
    for i, ending in ((308, "caption"), (309, "TEXT")):
        (root / f"{i}.png").write_bytes(encoded(picture(i), "PNG"))
        (root / f"{i}.{ending}").write_text(f"picture {i}")
    (root / "310.caption").write_text("picture 310, which is not there")
    made.things += 8 + 3
    made.good |= {305, 306, 307, 308, 309}
    for name in ("README.txt", "notes.md", ".hidden.jpg", ".hidden.txt"):
        (root / name).write_text("of no sample")
    return made


def rows(root: Path, made: Made) -> list[tuple[str, bytes | None]]:
    """(path of the picture, caption) of each thing; the pictures are written."""
    (root / "img").mkdir()
    found: list[tuple[str, bytes | None]] = []
    for thing in things():
        name = f"img/{thing.i}.{thing.ending}"
        if thing.defect != "link to a missing file":
            (root / name).write_bytes(thing.image)
        found.append((name, thing.caption))
        made.add(thing)
    os.mkfifo(root / "img/pipe.jpg")
    (root / "img/folder.jpg").mkdir()
    for name in ("img/pipe.jpg", "img/folder.jpg", "/dev/zero", "", "https://example.com/1.jpg", "n" * 300 + ".jpg"):
        found.append((name, b"picture 999"))
        made.things += 1
    return found


def table(root: Path, delimiter: str) -> Made:
    made = Made(root / ("t.csv" if delimiter == "," else "t.tsv"))
    lines = [f"image{delimiter}caption".encode()]
    for name, caption in rows(root, made):
        text = io.StringIO()
        csv.writer(text, delimiter=delimiter, lineterminator="\n").writerow([name, (caption or b"").decode("latin-1")])
        lines.append(text.getvalue()[:-1].encode("latin-1"))
    lines.append(b"")  # no thing
    for i in range(500, 520):
        (root / f"img/{i}.png").write_bytes(encoded(picture(i), "PNG"))
    odd = [
        '500,"picture 500, ""quoted""\nand on a second line"',
        '501,"picture 501',
        '502,"picture" 502',
        '503,"picture 503 \\"of\\" Spark"',
        "504,picture 504,and more",
        "505",
        '506,"picture 506" "twice", or more',
        '507,picture 507 of 5"',
        '508,"picture 508',
        "509,picture 509",
        "510,picture 510",
        '511,picture 511 of 5"',
        '512,"picture 512',
        '513,picture 513 of 5"',
        "514,picture 514\rand a bare return",
        '515,"picture 515 to the end',
    ]
    lines += [f"img/{row.replace(',', '.png,', 1)}".replace(",", delimiter, 1).encode() for row in odd]
    made.things += len(odd)
    made.good |= {500, 502, 503, 507, 509, 510, 511}
    made.maybe |= {501, 504, 506, 508, 515}  # what is taken literally, or has a delimiter too many
    made.path.write_bytes(b"\n".join(lines))
    return made


def csv_table(root: Path) -> Made:
    return table(root, ",")


def tsv_table(root: Path) -> Made:
    return table(root, "\t")


def json_line(name: str, caption: bytes | None) -> bytes:
    """An object with the very bytes of the caption, which may be no UTF-8."""
    quoted = b"null"
    if caption is not None:
        quoted = json.dumps(caption.decode("latin-1"), ensure_ascii=False).encode("latin-1")
    return json.dumps({"image": name, "caption": "CAPTION"}).encode().replace(b'"CAPTION"', quoted)


def jsonl(root: Path) -> Made:
    made = Made(root / "t.jsonl")
    lines = [json_line(name, caption) for name, caption in rows(root, made)]
    odd = [b'{"image": 7, "caption": "x"}', b"[1, 2]", b"{", b"null", b'{"image": "img/0.png"}', b"[" * 9999, b"\xff"]
    made.things += len(odd)
    made.path.write_bytes(b"\n\n".join(lines + odd))
    return made


def json_file(root: Path) -> Made:
    made = Made(root / "t.json")
    found: list[object] = []
    for name, caption in rows(root, made):
        try:
            found.append({"image": name, "caption": caption and caption.decode()})
        except UnicodeDecodeError:  # the whole file would be no JSON
            found.append({"image": name, "caption": None})
    odd = [{"image": 7, "caption": "x"}, [1, 2], None, "x", {"image": "img/0.png"}, {}]
    made.things += len(odd)
    made.path.write_text(json.dumps(found + odd))
    return made


def several(root: Path) -> Made:
    """Pictures with several captions, in lists and in rows that stand anywhere: each row is one thing."""
    made = Made(root / "t.jsonl")
    # Not of copies, which leave as duplicates, nor where another caption would make a thing good.
    chosen = {f"img/{t.i}.{t.ending}" for t in things() if t.defect is None or DEFECTS[t.defect][2] is not None}
    found = rows(root, made)
    later: list[dict[str, object]] = []
    for name, caption in found:
        if name in chosen:
            another = f"another of {(caption or b'').decode()}"
            later.append({"image": name, "caption": [another, "", "\0", another]})
    made.rows_of_others = len(later)
    later += [{"image": "img/0.png", "caption": 7}, {"image": "img/0.png"}, {"image": "img/0.png", "caption": None}]
    made.things += 3
    lines = [*(json_line(*row) for row in found), *(json.dumps(row).encode() for row in later), json_line(*found[0])]
    made.things += 1
    made.path.write_bytes(b"\n".join(lines))
    return made


def compressed(root: Path) -> Made:
    """A table in gzip that ends early: one record stands for all that is lost."""
    made = Made(root / "t.csv.gz")
    (root / "img").mkdir()
    for i in range(500, 520):
        (root / f"img/{i}.png").write_bytes(encoded(picture(i), "PNG"))
    text = "image,caption\n" + "".join(f"img/{i}.png,picture {i}\n" for i in range(500, 520))
    made.path.write_bytes(gzip.compress(text.encode()) + gzip.compress(b"img/0.png,more\n")[:5])
    made.good |= set(range(500, 520))
    made.things = 20 + 1
    return made


def arrow_table(made: Made):
    import pyarrow as pa

    found = [t for t in things() if t.defect != "link to a missing file"]
    for thing in found:
        made.add(thing)
    images: list[dict[str, object] | None] = [{"bytes": t.image, "path": None} for t in found]
    captions = [t.caption for t in found]
    for place in (None, {"bytes": None, "path": None}, {"bytes": None, "path": "none.jpg"}, {"bytes": b"", "path": ""}):
        images.append(place)
        captions.append(b"picture 999")
        made.things += 1
    struct = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    return pa.table({"image": pa.array(images, struct), "caption": pa.array(captions, pa.binary())})


def parquet(root: Path) -> Made:
    pq = pytest.importorskip("pyarrow.parquet")
    made = Made(root)
    pq.write_table(arrow_table(made), root / "a.parquet", row_group_size=20)
    one = arrow_table(Made(root)).slice(0, 1)
    (root / "deep").mkdir()
    pq.write_table(one, root / "deep" / "B.PARQUET")  # a duplicate
    made.things += 1
    return made


def damaged_parquet(root: Path) -> Made:
    """Every row of a page that cannot be read is a thing."""
    import pyarrow as pa

    pq = pytest.importorskip("pyarrow.parquet")

    made = Made(root / "t.parquet")
    images = [encoded(picture(i), "PNG") for i in range(500, 520)]
    pages = {"data_page_size": 1000, "write_batch_size": 1, "compression": "zstd", "use_dictionary": False}
    table = pa.table({"image": images, "caption": [f"picture {i}" for i in range(500, 520)]})
    pq.write_table(table, made.path, **pages)
    column = pq.ParquetFile(made.path).metadata.row_group(0).column(0)
    with open(made.path, "r+b") as file:
        file.seek(column.data_page_offset + column.total_compressed_size * 9 // 10)
        file.write(b"\xa5" * 200)
    made.things, made.good, made.maybe = 20, set(range(500, 516)), set(range(516, 519))
    return made


def huggingface(root: Path) -> Made:
    pa = pytest.importorskip("pyarrow")
    made = Made(root)
    table = arrow_table(made)
    (root / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    for split, part in (("train", table.slice(0, 30)), ("test", table.slice(30))):
        (root / split).mkdir()
        (root / split / "state.json").write_text(json.dumps({"_data_files": [{"filename": "data-0.arrow"}]}))
        with (
            pa.OSFile(str(root / split / "data-0.arrow"), "wb") as file,
            pa.ipc.new_stream(file, part.schema) as writer,
        ):
            writer.write_table(part, max_chunksize=7)
    return made


def shards(root: Path) -> Made:
    made = Made(root)
    with tarfile.open(root / "0.tar", "w") as tar:

        def member(name: str, data: bytes = b"", kind: bytes = tarfile.REGTYPE) -> None:
            info = tarfile.TarInfo(name)
            info.size, info.type = len(data), kind
            tar.addfile(info, io.BytesIO(data))

        def pair(name: str, i: int) -> None:
            member(f"{name}.png", encoded(picture(i), "PNG"))
            member(f"{name}.txt", b"picture %d" % i)

        for thing in things():
            is_link = thing.defect == "link to a missing file"
            member(f"{thing.i}.{thing.ending}", b"" if is_link else thing.image, tarfile.SYMTYPE if is_link else b"0")
            if thing.caption is not None:
                member(f"{thing.i}.txt", thing.caption)
            made.add(thing)
        pair("twice", 500)
        pair("twice", 501)
        pair("case", 502)
        member("case.PNG", encoded(picture(503), "PNG"))
        pair("v1.0", 504)
        pair("v1.1", 505)
        pair(os.fsdecode(b"caf\xe9"), 506)
        member("pipe.jpg", kind=tarfile.FIFOTYPE)
        member("README", b"no ending")
        member("alone.txt", b"picture 507")
        pair("two", 508)
        member("two.webp", encoded(picture(509), "WEBP"))
        member("json.png", encoded(picture(510), "PNG"))
        member("json.json", b"[" * 5000)
        member("._510.png", b"hidden")
    made.good |= {500, 501, 504, 505, 506, 508}
    made.things += 2 + 2 + 2 + 1 + 1 + 1 + 1 + 2 + 1
    return made


def shards_in_place(root: Path) -> Made:
    made = shards(root)
    made.good -= {t.i for t in things() if t.ending in ("gif", "bmp", "tiff", "tif")}
    return made


def broken_tar(root: Path) -> Made:
    """What lies before a size of -512 arrives; one record stands for what lies behind it."""
    made = Made(root / "0.tar")
    with tarfile.open(made.path, "w") as tar:
        for i in range(500, 506):
            for ending, data in (("png", encoded(picture(i), "PNG")), ("txt", b"picture %d" % i)):
                info = tarfile.TarInfo(f"{i}.{ending}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    with tarfile.open(made.path) as tar:
        place = tar.getmember("504.png").offset
    data = bytearray(made.path.read_bytes())
    data[place + 124 : place + 136] = b"-0000001000\0"
    block = data[place : place + 512]
    data[place + 148 : place + 156] = b"%06o\0 " % (sum(block) - sum(block[148:156]) + 256)
    made.path.write_bytes(data)
    made.things, made.good = 5, {500, 501, 502, 503}
    return made


def laion(root: Path) -> Made:
    made = Made(root)
    lines = []
    for thing in things():
        if thing.defect == "link to a missing file":
            continue
        caption = thing.caption or b""
        lines.append(b"\t".join([b"1", b"u", caption.strip(), b"x", base64.b64encode(thing.image), b"y"]))
        made.add(thing)
    odd = [b"\t".join([b"1", b"u", b"c", b"x", b"####", b"y"]), b"a\tb", b"no tab at all", b" ", b"\t" * 5, b"\xff" * 9]
    made.things += len(odd)
    (root / "part-0").write_bytes(b"\n".join(lines + odd))
    (root / "deep").mkdir()
    (root / "deep" / "part-1").write_bytes(lines[0] + b"\n")  # a duplicate
    with gzip.open(root / "part-2.gz", "wb") as file:
        file.write(lines[1] + b"\n")  # another one
    made.things += 2
    return made


def text_of(i: int) -> np.ndarray:
    """An embedding that says the number of its picture, in numbers that 16 bits hold exactly."""
    text = np.ones((4, 8), np.float32)
    text[:, 0], text[:, 1] = divmod(i, 16)
    return text


def cc12m(root: Path) -> Made:
    made = Made(root / "t.txt")
    lines = []

    def line(image: bytes, tokens: object, mask: object) -> None:
        number = len(lines)
        for name, array in (("t", tokens), ("m", mask)):
            if isinstance(array, bytes):
                (root / f"{number}{name}.npy").write_bytes(array)
            elif array is not None:
                np.save(root / f"{number}{name}.npy", array)
        coded = base64.b64encode(image).decode()
        lines.append(f"{number}\t{number}t.npy\t{number}m.npy\t{coded}".encode())
        made.things += 1

    text, mask = np.ones((4, 8), np.float32), np.array([1, 1, 0, 0])
    for thing in things():
        if thing.defect in (None, *COPIES) or DEFECTS[thing.defect][2] is not None:
            line(thing.image, text_of(thing.i), mask)
            made.good |= {thing.i} if thing.defect is None else set()
    bad = [
        (None, mask),
        (text, None),
        (b"", mask),
        (text, b"\x93NUMPY nothing"),
        (text, mask * 0),
        (text[0], mask),
        (text, mask[:2]),
        (text.astype(int), mask),
        (text[:, :3], mask),
        (text * np.nan, mask),
        (text, text),
        (np.ones((0, 8)), np.ones(0)),
        (np.ones((40, 8)), np.ones(40)),
        (np.array([{}]), mask),
        (text * 1e39, mask),
    ]
    for i, (tokens, of) in enumerate(bad, 700):
        line(encoded(picture(i), "PNG"), tokens, of)
    os.mkfifo(root / "pipe.npy")
    lines += [
        b"1\tpipe.npy\tpipe.npy\tx",
        b"1\t0t.npy\t0m.npy\t####",
        b"1\t\t\tx",
        b"1\t2",
        b"1\t\xff.npy\t0m.npy\tx",
        b" ",
    ]
    made.things += 6
    made.path.write_bytes(b"\n".join(lines))
    return made


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
