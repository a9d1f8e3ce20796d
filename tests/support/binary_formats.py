"""Write the planted pairs as Parquet, Arrow, tars and the Paddle formats, with defects specific to each format."""

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
from planted_pairs import COPIES, DEFECTS, WrittenSource, planted_pairs


def arrow_table(written: WrittenSource):
    import pyarrow as pa

    found = [t for t in planted_pairs() if t.defect != "link to a missing file"]
    for planted in found:
        written.add(planted)
    images: list[dict[str, object] | None] = [{"bytes": t.image, "path": None} for t in found]
    captions = [t.caption for t in found]
    for image in (None, {"bytes": None, "path": None}, {"bytes": None, "path": "none.jpg"}, {"bytes": b"", "path": ""}):
        images.append(image)
        captions.append(b"picture 999")
        written.pairs += 1
    struct = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    return pa.table({"image": pa.array(images, struct), "caption": pa.array(captions, pa.binary())})


def parquet(root: Path) -> WrittenSource:
    pq = pytest.importorskip("pyarrow.parquet")
    written = WrittenSource(root)
    pq.write_table(arrow_table(written), root / "a.parquet", row_group_size=20)
    one = arrow_table(WrittenSource(root)).slice(0, 1)
    (root / "deep").mkdir()
    pq.write_table(one, root / "deep" / "B.PARQUET")  # a duplicate
    written.pairs += 1
    return written


def damaged_parquet(root: Path) -> WrittenSource:
    """Write a file with a damaged page: each row of the page counts as a pair."""
    import pyarrow as pa

    pq = pytest.importorskip("pyarrow.parquet")

    written = WrittenSource(root / "t.parquet")
    images = [encoded(picture(i), "PNG") for i in range(500, 520)]
    pages = {"data_page_size": 1000, "write_batch_size": 1, "compression": "zstd", "use_dictionary": False}
    table = pa.table({"image": images, "caption": [f"picture {i}" for i in range(500, 520)]})
    pq.write_table(table, written.path, **pages)
    column = pq.ParquetFile(written.path).metadata.row_group(0).column(0)
    with open(written.path, "r+b") as file:
        file.seek(column.data_page_offset + column.total_compressed_size * 9 // 10)
        file.write(b"\xa5" * 200)
    written.pairs, written.good, written.maybe = 20, set(range(500, 516)), set(range(516, 519))
    return written


def huggingface(root: Path) -> WrittenSource:
    pa = pytest.importorskip("pyarrow")
    written = WrittenSource(root)
    table = arrow_table(written)
    (root / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    for split, part in (("train", table.slice(0, 30)), ("test", table.slice(30))):
        (root / split).mkdir()
        (root / split / "state.json").write_text(json.dumps({"_data_files": [{"filename": "data-0.arrow"}]}))
        with (
            pa.OSFile(str(root / split / "data-0.arrow"), "wb") as file,
            pa.ipc.new_stream(file, part.schema) as writer,
        ):
            writer.write_table(part, max_chunksize=7)
    return written


def shards(root: Path) -> WrittenSource:
    written = WrittenSource(root)
    with tarfile.open(root / "0.tar", "w") as tar:

        def member(name: str, data: bytes = b"", kind: bytes = tarfile.REGTYPE) -> None:
            info = tarfile.TarInfo(name)
            info.size, info.type = len(data), kind
            tar.addfile(info, io.BytesIO(data))

        def pair(name: str, i: int) -> None:
            member(f"{name}.png", encoded(picture(i), "PNG"))
            member(f"{name}.txt", b"picture %d" % i)

        for planted in planted_pairs():
            is_link = planted.defect == "link to a missing file"
            member(
                f"{planted.i}.{planted.ending}", b"" if is_link else planted.image, tarfile.SYMTYPE if is_link else b"0"
            )
            if planted.caption is not None:
                member(f"{planted.i}.txt", planted.caption)
            written.add(planted)
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
    written.good |= {500, 501, 504, 505, 506, 508}
    written.pairs += 2 + 2 + 2 + 1 + 1 + 1 + 1 + 2 + 1
    return written


def shards_in_place(root: Path) -> WrittenSource:
    written = shards(root)
    written.good -= {t.i for t in planted_pairs() if t.ending in ("gif", "bmp", "tiff", "tif")}
    return written


def broken_tar(root: Path) -> WrittenSource:
    """Write a tar with a header that gives a size of -512: members before it are read, one record reports the rest."""
    written = WrittenSource(root / "0.tar")
    with tarfile.open(written.path, "w") as tar:
        for i in range(500, 506):
            for ending, data in (("png", encoded(picture(i), "PNG")), ("txt", b"picture %d" % i)):
                info = tarfile.TarInfo(f"{i}.{ending}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    with tarfile.open(written.path) as tar:
        offset = tar.getmember("504.png").offset
    data = bytearray(written.path.read_bytes())
    data[offset + 124 : offset + 136] = b"-0000001000\0"
    block = data[offset : offset + 512]
    data[offset + 148 : offset + 156] = b"%06o\0 " % (sum(block) - sum(block[148:156]) + 256)
    written.path.write_bytes(data)
    written.pairs, written.good = 5, {500, 501, 502, 503}
    return written


def laion(root: Path) -> WrittenSource:
    written = WrittenSource(root)
    lines = []
    for planted in planted_pairs():
        if planted.defect == "link to a missing file":
            continue
        caption = planted.caption or b""
        lines.append(b"\t".join([b"1", b"u", caption.strip(), b"x", base64.b64encode(planted.image), b"y"]))
        written.add(planted)
    odd = [b"\t".join([b"1", b"u", b"c", b"x", b"####", b"y"]), b"a\tb", b"no tab at all", b" ", b"\t" * 5, b"\xff" * 9]
    written.pairs += len(odd)
    (root / "part-0").write_bytes(b"\n".join(lines + odd))
    (root / "deep").mkdir()
    (root / "deep" / "part-1").write_bytes(lines[0] + b"\n")  # a duplicate
    with gzip.open(root / "part-2.gz", "wb") as file:
        file.write(lines[1] + b"\n")  # another one
    written.pairs += 2
    return written


def numbered_embedding(i: int) -> np.ndarray:
    """Return an embedding that encodes the number of its image in values that are exact in bfloat16."""
    text = np.ones((4, 8), np.float32)
    text[:, 0], text[:, 1] = divmod(i, 16)
    return text


def cc12m(root: Path) -> WrittenSource:
    written = WrittenSource(root / "t.txt")
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
        written.pairs += 1

    text, mask = np.ones((4, 8), np.float32), np.array([1, 1, 0, 0])
    for planted in planted_pairs():
        if planted.defect in (None, *COPIES) or DEFECTS[planted.defect][2] is not None:
            line(planted.image, numbered_embedding(planted.i), mask)
            written.good |= {planted.i} if planted.defect is None else set()
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
    for i, (tokens, token_mask) in enumerate(bad, 700):
        line(encoded(picture(i), "PNG"), tokens, token_mask)
    os.mkfifo(root / "pipe.npy")
    lines += [
        b"1\tpipe.npy\tpipe.npy\tx",
        b"1\t0t.npy\t0m.npy\t####",
        b"1\t\t\tx",
        b"1\t2",
        b"1\t\xff.npy\t0m.npy\tx",
        b" ",
    ]
    written.pairs += 6
    written.path.write_bytes(b"\n".join(lines))
    return written
