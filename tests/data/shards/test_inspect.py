"""Test `inspect`: its figures against shards counted by hand, and a page that shows hostile captions as text."""

import base64
import io
import json
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from corpus import encoded, picture
from PIL import Image

from imagen.data.build.dataset import build_source
from imagen.data.shards.gallery import write_gallery
from imagen.data.shards.inspect import inspect, spread
from imagen.data.shards.writer import ShardWriter
from imagen.data.sources.base import Record
from imagen.errors import UserError

HOSTILE = "</figcaption><script>alert('x')</script> \" onerror=\"alert(1) & <b>bold</b>"


def png(i: int, height: int, width: int) -> bytes:
    return encoded(picture(i, height, width), "PNG")


@pytest.fixture
def shards(tmp_path) -> Path:
    """Write train: three samples in two shards, one with images of two sizes; and heldout: one broken image."""
    with ShardWriter(tmp_path / "s" / "train", 2) as writer:
        writer.write({"__key__": "a", "png": png(1, 64, 200), "txt": b"x" * 15})
        writer.write({"__key__": "b", "64.png": png(2, 64, 64), "256.png": png(3, 256, 256), "txt": b""})
        writer.write({"__key__": "c", "jpg": encoded(picture(4, 1024, 1030), "JPEG"), "txt": HOSTILE.encode()})
    with ShardWriter(tmp_path / "s" / "heldout") as writer:
        writer.write({"__key__": "d", "png": b"gone bad", "txt": "ü".encode() * 16})
    return tmp_path / "s"


def nonempty_bars(histogram: list) -> dict[int, int]:
    """Return the non-empty bars of a histogram as {first value: count}."""
    return {first: count for first, _, count in histogram if count}


def test_figures_equal_those_counted_by_hand(shards):
    summary = json.loads(json.dumps(inspect(shards)))
    train, heldout = summary["splits"]["train"], summary["splits"]["heldout"]
    assert (train["samples"], train["shards"], train["looked_at"], train["unreadable"]) == (3, 2, 3, 0)
    assert train["bytes"] == sum(path.stat().st_size for path in (shards / "train").glob("*.tar"))
    assert nonempty_bars(train["sides"]) == {64: 1, 256: 1, 1024: 1}  # of b, the larger image
    assert nonempty_bars(train["captions"]) == {0: 1, 1: 1, 64: 1} and 64 <= len(HOSTILE) < 128
    assert (heldout["samples"], heldout["unreadable"], nonempty_bars(heldout["sides"])) == (1, 1, {})
    assert nonempty_bars(heldout["captions"]) == {16: 1}  # characters, not bytes
    assert train["embeddings"] == [] and summary["rejected"] == {}
    firsts, lasts = zip(*((first, last) for first, last, _ in train["sides"]), strict=True)
    assert lasts == (*(first - 1 for first in firsts[1:]), None)


def test_large_data_sets_are_sampled(shards):
    summary = inspect(shards, sample_size=2)
    assert summary["splits"]["train"]["samples"] == 3 and summary["splits"]["train"]["looked_at"] == 2
    assert spread(4, 10) == [0, 2, 5, 7] and spread(4, 3) == [0, 1, 2] and spread(5, 0) == []


class MemorySource:
    """A source of records with embeddings, duplicates and defects."""

    def parts(self):
        return [{"first": 0}, {"first": 10}]

    def read(self, part):
        for i in range(part["first"], part["first"] + 10):
            image = b"<html>" if i in (3, 4, 13) else encoded(picture(0 if i == 19 else i), "PNG")
            origin = f"<img src=x onerror=alert({i})>"
            yield Record(key=f"k{i}", origin=origin, image=image, caption=HOSTILE, embedding=np.ones((1 + i % 3, 8)))


def test_rejected_records_and_embeddings_of_a_build_are_counted(tmp_path):
    build_source(MemorySource, tmp_path / "s", encoder="some/encoder.v1-xl", max_tokens=4, workers=1, progress=False)
    summary = inspect(tmp_path / "s")
    assert summary["rejected"] == {"not a picture": 3, "duplicate": 1}
    train = summary["splits"]["train"]
    text = {"encoder": "some/encoder.v1-xl", "revision": "main", "max_tokens": 4, "width": 8}
    unknown = {"cut": None, "cut_tokens": None, "cut_most": None}  # the source does not know what its encoder truncated
    assert train["samples"] == 16 and train["embeddings"] == [{**text, "samples": 16, "share": 1.0, **unknown}]
    next((tmp_path / "s").glob("00000-*.text.safetensors")).unlink()
    (row,) = inspect(tmp_path / "s")["splits"]["train"]["embeddings"]
    assert row["samples"] == 8 and row["share"] == 0.5


class Page(HTMLParser):
    def __init__(self, text: str):
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += attributes

    def handle_data(self, data):
        self.text += data


def test_the_page_is_self_contained_and_shows_hostile_text_as_text(shards, tmp_path):
    build_source(MemorySource, tmp_path / "b", encoder="e", max_tokens=4, workers=1, progress=False)
    for folder, wanted in ((shards, "not a complete image"), (tmp_path / "b", "<img src=x onerror=alert(3)>")):
        write_gallery(tmp_path / "page.html", folder, inspect(folder))
        page = Page((tmp_path / "page.html").read_text(encoding="utf-8"))
        assert HOSTILE in page.text and wanted in page.text
        assert not {"script", "link", "iframe", "object"} & set(page.tags)
        assert not [name for name, _ in page.attributes if name.startswith("on") or name == "href"]
        sources = [value for name, value in page.attributes if name == "src"]
        assert sources and all(source.startswith("data:image/jpeg;base64,") for source in sources)
        for source in sources:
            assert max(Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2]))).size) <= 192


def test_the_page_is_written_atomically(shards, tmp_path):
    (tmp_path / "page.html").write_text("a page of another program")
    with pytest.raises(UserError, match="already exists and is not such a page"):
        write_gallery(tmp_path / "page.html", shards, inspect(shards))
    (tmp_path / "page.html").unlink()
    write_gallery(tmp_path / "page.html", shards, inspect(shards))
    before = (tmp_path / "page.html").read_text()
    (shards / "train" / "00000.tar").write_bytes(b"")
    with pytest.raises(UserError, match=r"00000\.tar"):
        write_gallery(tmp_path / "page.html", shards, {"splits": {"train": inspect_stub()}, "rejected": {}})
    assert (tmp_path / "page.html").read_text() == before


def inspect_stub() -> dict:
    return {"samples": 0, "shards": 0, "bytes": 0, "embeddings": [], "sides": [], "captions": []}
