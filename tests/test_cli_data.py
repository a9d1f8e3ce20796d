"""`imagen data build` and `imagen data inspect` on the command line."""

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent / "data"))

from corpus import DEFECTS, REPEATS, Corpus, encoded, picture

import imagen.data.sources


@pytest.fixture(autouse=True)
def source(monkeypatch):
    """What `open_source` opens in these tests."""

    def open_source(path, format=None, **columns):
        return Corpus(400, 200)

    monkeypatch.setattr(imagen.data.sources, "open_source", open_source, raising=False)


def test_build_and_inspect(imagen, mistake, tmp_path):
    out = imagen("data", "build", tmp_path, "--out", tmp_path / "shards", "--workers", 1)
    bad = REPEATS * len(DEFECTS)
    assert f"{400 - bad} samples in 2 shards, of 400 records\n  15 rejected: truncated picture\n" in out
    assert f"then: imagen data encode {tmp_path / 'shards'}" in out
    summary = json.loads(imagen("data", "inspect", tmp_path / "shards", "--json"))
    assert summary["splits"]["train"]["samples"] == 400 - bad and sum(summary["rejected"].values()) == bad
    table = imagen("data", "inspect", tmp_path / "shards")
    assert all(reason in table for reason, *_ in DEFECTS.values()) and "64 to 127" in table
    assert "page.html" in imagen("data", "inspect", tmp_path / "shards", "--html", tmp_path / "page.html")
    assert (tmp_path / "page.html").read_text().startswith("<!doctype html>")

    again = ("data", "build", tmp_path, "--out", tmp_path / "shards", "--workers", 1)
    assert "75 of 400 records were rejected" in mistake(*again, "--max-rejected", 0.1)
    assert "with min_side 64, not 128" in mistake(*again, "--min-side", 128)
    assert "--max-aspect is 0.5; it must be at least 1" in mistake(*again, "--max-aspect", 0.5)
    assert "--max-rejected: 'x' is not a number" in mistake(*again, "--max-rejected", "x")
    assert "--out is missing" in mistake("data", "build", tmp_path)


def test_inspect_reads_the_embedded_data_set(imagen, made):
    summary = json.loads(imagen("data", "inspect", made / "shards", "--json"))
    train, heldout = summary["splits"]["train"], summary["splits"]["heldout"]
    assert (train["samples"], heldout["samples"]) == (2 * 11 * 4, 2 * 4)
    assert [bar for bar in train["sides"] if bar[2]] == [[256, 511, 88]]
    (text,) = train["embeddings"]
    assert text["share"] == 1.0 and text["encoder"].endswith("all-MiniLM-L6-v2")


def test_what_is_no_shards_is_one_line(mistake, tmp_path):
    assert "is not a folder" in mistake("data", "inspect", tmp_path / "absent")
    (tmp_path / "a.png").write_bytes(encoded(picture(0), "PNG"))
    assert "holds no shards" in mistake("data", "inspect", tmp_path)
