"""`things` in Parquet, Arrow, tars and the Paddle formats, each with the defects that only its format can have."""

import base64
import gzip
import io
import json
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
from corpus import encoded, picture
from things import COPIES, DEFECTS, Made, things


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
