"""Test builds that are run again after files of their source have changed."""

import json
import os
from functools import partial
from pathlib import Path

import pytest
from corpus import encoded, picture

from imagen.data.build.dataset import build
from imagen.data.shards.dataset import open_split
from imagen.data.sources import open_source
from imagen.errors import UserError
from imagen.files import read_json

again = partial(build, workers=1, progress=False, max_rejected=1.0)


@pytest.fixture
def photos(tmp_path) -> Path:
    """A folder of 300 images with captions, which makes three parts."""
    folder = tmp_path / "photos"
    folder.mkdir()
    image = [encoded(picture(i), "PNG") for i in range(3)]
    for i in range(300):
        (folder / f"{i:03d}.png").write_bytes(image[i % 3])
        (folder / f"{i:03d}.txt").write_text(f"caption {i}")
    return folder


def captions(shards: Path) -> set[str]:
    dataset = open_split(shards)
    return {dataset.caption(i) for i in range(len(dataset))}


def test_a_finished_build_names_the_file_that_changed(photos, tmp_path):
    made = again(photos, tmp_path / "out", keep_duplicates=True)
    lines: list[str] = []
    assert again(photos, tmp_path / "out", keep_duplicates=True, report=lines.append) == made
    assert lines == [f"{tmp_path}/out was built already, and its source is not read again; to build anew, delete "
                     f"{tmp_path}/out"]  # fmt: skip
    corrected = photos / "007.txt"
    for change in (
        lambda: corrected.write_text("another caption"),
        lambda: os.utime(corrected, (0, 0)),
        lambda: corrected.unlink(),
    ):
        change()
        with pytest.raises(UserError, match=r"007\.txt has changed since .*out was built from it.*delete .*out"):
            again(photos, tmp_path / "out", keep_duplicates=True)
    (photos / "008.json").write_text('{"caption": "appeared"}')
    (photos / "007.txt").write_text("caption 7")
    assert "caption 7" in captions(tmp_path / "out")
    again(photos, tmp_path / "new", keep_duplicates=True)
    assert len(captions(tmp_path / "new")) == 300


def test_a_killed_build_reads_changed_parts_again(photos, tmp_path):
    again(photos, tmp_path / "out", keep_duplicates=True)
    described = read_json(tmp_path / "out" / "build.json")
    (tmp_path / "out" / "build.json").write_text(json.dumps({k: v for k, v in described.items() if k != "result"}))
    kept = (tmp_path / "out" / "00000-000.tar").stat().st_mtime_ns
    (photos / "007.txt").write_text("another caption")  # part i has the images i, i + 3, i + 6, ...
    assert again(photos, tmp_path / "out", keep_duplicates=True)["samples"] == 300
    assert captions(tmp_path / "out") >= {"another caption", "caption 8"}
    assert (tmp_path / "out" / "00000-000.tar").stat().st_mtime_ns == kept


def test_a_build_of_an_earlier_version_is_found(photos, tmp_path):
    made = again(photos, tmp_path / "out", keep_duplicates=True)
    for path in (tmp_path / "out").glob("*.report.json"):
        path.write_text(json.dumps({name: value for name, value in read_json(path).items() if name != "source"}))
    (photos / "007.txt").write_text("another caption")
    assert again(photos, tmp_path / "out", keep_duplicates=True) == made


def test_a_changed_table_is_noticed(tmp_path):
    (tmp_path / "a.png").write_bytes(encoded(picture(0), "PNG"))
    table = tmp_path / "pairs.csv"
    table.write_text("file,caption\na.png,a bird\n")
    again(table, tmp_path / "out")
    again(table, tmp_path / "out")
    table.write_text("file,caption\na.png,a dog.\n")
    os.utime(table, (0, 0))
    with pytest.raises(UserError, match=r"pairs\.csv has changed since"):
        again(table, tmp_path / "out")


def test_files_of_a_folder_are_those_that_it_reads(tmp_path):
    for name in ("a.png", "a.txt", "b.png", "b.caption", "alone.txt"):
        (tmp_path / name).write_bytes(b"")
    (part,) = open_source(tmp_path).parts()
    names = [path.name for path in open_source(tmp_path).files_of(part)]
    assert names == ["a.png", "a.txt", "a.json", *["alone.txt"] * 2, "alone.json", "b.png", "b.caption"]
    named = open_source(tmp_path, caption_from="name")
    assert [path.name for path in named.files_of(named.parts()[0])] == ["a.png", "b.png"]
