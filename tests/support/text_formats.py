"""Write the planted pairs as folders and as text tables, with defects specific to each format."""

import csv
import gzip
import io
import json
import os
from pathlib import Path

from corpus import encoded, picture
from planted_pairs import DEFECTS, WrittenSource, plain_pair, planted_pairs

# --- image folders and tables ---


def folder(root: Path) -> WrittenSource:
    written = WrittenSource(root)
    for pair in planted_pairs():
        path = root / ("deep" if pair.i % 2 else ".") / f"{pair.i}.{pair.ending}"
        path.parent.mkdir(exist_ok=True)
        if pair.defect == "link to a missing file":
            path.symlink_to("nowhere.jpg")
        else:
            path.write_bytes(pair.image)
        if pair.caption is not None:
            path.with_suffix(".txt").write_bytes(pair.caption)
        written.add(pair)
    for i, ending in enumerate(
        ["jfif", "jpe", "pjpeg", "JPG", "avif", "jp2", "dib", "apng", "heic", "jxl", "cr2", "svg", "psd"], 200
    ):
        (root / f"{i}.{ending}").write_bytes(encoded(picture(i), "PNG") if i < 204 else b"no picture of a known kind")
        (root / f"{i}.txt").write_text(f"picture {i}")
        written.add(plain_pair(i), is_good=i < 204)
    os.mkfifo(root / "300.jpg")
    (root / "301.jpg").symlink_to("/dev/zero")
    (root / "302.txt").write_text("picture 302, which does not exist")
    (root / "303.json").mkdir()
    (root / "303.jpg").write_bytes(encoded(picture(303), "PNG"))
    (root / "304.jpg").write_bytes(encoded(picture(304), "PNG"))
    (root / "304.json").write_text("[" * 5000)
    (root / os.fsdecode(b"caf\xe9 305.png")).write_bytes(encoded(picture(305), "PNG"))
    (root / os.fsdecode(b"caf\xe9 305.txt")).write_text("picture 305")
    (root / "306.jpg").write_bytes(encoded(picture(306), "PNG"))
    (root / "306.png").write_bytes(encoded(picture(307), "PNG"))
    (root / "306.txt").write_text("picture 306 or 307")  # one caption for both images
    for i, ending in ((308, "caption"), (309, "TEXT")):
        (root / f"{i}.png").write_bytes(encoded(picture(i), "PNG"))
        (root / f"{i}.{ending}").write_text(f"picture {i}")
    (root / "310.caption").write_text("picture 310, which does not exist")
    written.pairs += 8 + 3
    written.good |= {305, 306, 307, 308, 309}
    for name in ("README.txt", "notes.md", ".hidden.jpg", ".hidden.txt"):
        (root / name).write_text("of no sample")
    return written


def rows(root: Path, written: WrittenSource) -> list[tuple[str, bytes | None]]:
    """Write the images, and return (path, caption) of each pair."""
    (root / "img").mkdir()
    found: list[tuple[str, bytes | None]] = []
    for pair in planted_pairs():
        name = f"img/{pair.i}.{pair.ending}"
        if pair.defect != "link to a missing file":
            (root / name).write_bytes(pair.image)
        found.append((name, pair.caption))
        written.add(pair)
    os.mkfifo(root / "img/pipe.jpg")
    (root / "img/folder.jpg").mkdir()
    for name in ("img/pipe.jpg", "img/folder.jpg", "/dev/zero", "", "https://example.com/1.jpg", "n" * 300 + ".jpg"):
        found.append((name, b"picture 999"))
        written.pairs += 1
    return found


def table(root: Path, delimiter: str) -> WrittenSource:
    written = WrittenSource(root / ("t.csv" if delimiter == "," else "t.tsv"))
    lines = [f"image{delimiter}caption".encode()]
    for name, caption in rows(root, written):
        text = io.StringIO()
        csv.writer(text, delimiter=delimiter, lineterminator="\n").writerow([name, (caption or b"").decode("latin-1")])
        lines.append(text.getvalue()[:-1].encode("latin-1"))
    lines.append(b"")  # an empty line is no row
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
    written.pairs += len(odd)
    written.good |= {500, 502, 503, 507, 509, 510, 511}
    written.maybe |= {501, 504, 506, 508, 515}  # rows read literally, or with an extra delimiter
    written.path.write_bytes(b"\n".join(lines))
    return written


def csv_table(root: Path) -> WrittenSource:
    return table(root, ",")


def tsv_table(root: Path) -> WrittenSource:
    return table(root, "\t")


def json_line(name: str, caption: bytes | None) -> bytes:
    """Return an object with exactly the bytes of the caption, which need not be UTF-8."""
    quoted = b"null"
    if caption is not None:
        quoted = json.dumps(caption.decode("latin-1"), ensure_ascii=False).encode("latin-1")
    return json.dumps({"image": name, "caption": "CAPTION"}).encode().replace(b'"CAPTION"', quoted)


def jsonl(root: Path) -> WrittenSource:
    written = WrittenSource(root / "t.jsonl")
    lines = [json_line(name, caption) for name, caption in rows(root, written)]
    odd = [b'{"image": 7, "caption": "x"}', b"[1, 2]", b"{", b"null", b'{"image": "img/0.png"}', b"[" * 9999, b"\xff"]
    written.pairs += len(odd)
    written.path.write_bytes(b"\n\n".join(lines + odd))
    return written


def json_file(root: Path) -> WrittenSource:
    written = WrittenSource(root / "t.json")
    found: list[object] = []
    for name, caption in rows(root, written):
        try:
            found.append({"image": name, "caption": caption and caption.decode()})
        except UnicodeDecodeError:  # would make the whole file invalid JSON
            found.append({"image": name, "caption": None})
    odd = [{"image": 7, "caption": "x"}, [1, 2], None, "x", {"image": "img/0.png"}, {}]
    written.pairs += len(odd)
    written.path.write_text(json.dumps(found + odd))
    return written


def several(root: Path) -> WrittenSource:
    """Write a table of images with several captions, in lists and in scattered rows; each row counts as a pair."""
    written = WrittenSource(root / "t.jsonl")
    # Not for copies, which are removed as duplicates, nor where a further caption would make a pair good.
    chosen = {f"img/{t.i}.{t.ending}" for t in planted_pairs() if t.defect is None or DEFECTS[t.defect][2] is not None}
    found = rows(root, written)
    later: list[dict[str, object]] = []
    for name, caption in found:
        if name in chosen:
            another = f"another of {(caption or b'').decode()}"
            later.append({"image": name, "caption": [another, "", "\0", another]})
    written.caption_rows = len(later)
    later += [{"image": "img/0.png", "caption": 7}, {"image": "img/0.png"}, {"image": "img/0.png", "caption": None}]
    written.pairs += 3
    lines = [*(json_line(*row) for row in found), *(json.dumps(row).encode() for row in later), json_line(*found[0])]
    written.pairs += 1
    written.path.write_bytes(b"\n".join(lines))
    return written


def compressed(root: Path) -> WrittenSource:
    """Write a truncated gzip table: one record reports everything that is lost."""
    written = WrittenSource(root / "t.csv.gz")
    (root / "img").mkdir()
    for i in range(500, 520):
        (root / f"img/{i}.png").write_bytes(encoded(picture(i), "PNG"))
    text = "image,caption\n" + "".join(f"img/{i}.png,picture {i}\n" for i in range(500, 520))
    written.path.write_bytes(gzip.compress(text.encode()) + gzip.compress(b"img/0.png,more\n")[:5])
    written.good |= set(range(500, 520))
    written.pairs = 20 + 1
    return written
