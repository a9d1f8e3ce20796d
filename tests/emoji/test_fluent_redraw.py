"""Test that a base model redraws the smallest masters of shards and leaves everything else as it was."""

import io
from pathlib import Path

import pytest
from PIL import Image

from imagen.cascade import Cascade
from imagen.data.shards.dataset import open_split
from imagen.emoji.fluent.redraw import redraw
from imagen.errors import UserError
from imagen.files import read_json


def test_redrawn_masters(artifacts: Path, tmp_path: Path) -> None:
    cascade = Cascade.load(artifacts / "cascade", stages=1)
    count = redraw(cascade, artifacts / "shards", tmp_path, strengths=(0.1,), progress=False)
    again = {split: (tmp_path / split / "00000.tar").stat().st_mtime_ns for split in ("train", "heldout")}
    assert redraw(cascade, artifacts / "shards", tmp_path, strengths=(0.1,), progress=False) == count
    assert again == {split: (tmp_path / split / "00000.tar").stat().st_mtime_ns for split in again}  # not repeated
    with pytest.raises(UserError, match="of another base, or of other shards"):
        redraw(cascade, artifacts / "shards", tmp_path, strengths=(0.2,), progress=False)
    with pytest.raises(UserError, match="choose another folder"):
        redraw(cascade, artifacts / "shards", artifacts / "shards", progress=False)
    described = read_json(tmp_path / "dataset.json")
    assert described["arguments"]["redrawn"]["base"] == cascade.stages[0].sha256 and described["words"]
    for split in ("train", "heldout"):
        before, after = (open_split(folder, split) for folder in (artifacts / "shards", tmp_path))
        assert len(before) == len(after)
        for i in range(len(before)):
            assert before.key(i) == after.key(i) and before.extensions(i) == after.extensions(i)
            for name in before.extensions(i):
                assert (before.read(i, name) == after.read(i, name)) == (name != "64.png")
        assert Image.open(io.BytesIO(after.read(0, "64.png"))).size == (64, 64)


def test_masters_of_another_size_are_an_error(artifacts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cascade = Cascade.load(artifacts / "cascade", stages=1)
    monkeypatch.setattr("imagen.emoji.fluent.redraw.open_split", lambda *_: FewMasters())
    with pytest.raises(UserError, match="without a master of 64 pixels"):
        redraw(cascade, artifacts / "shards", tmp_path, progress=False)


class FewMasters:
    def __len__(self) -> int:
        return 1

    def fingerprint(self) -> str:
        return ""

    def extensions(self, i: int) -> list[str]:
        return ["256.png", "txt"]

    def read(self, i: int, name: str) -> bytes:
        return b""
