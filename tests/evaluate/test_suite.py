"""Prompt suites: the packaged one, other people's tables, and what is written for people to look at."""

import json

import pytest
from cascades import QUICK, cascade
from PIL import Image

from imagen.errors import UserError
from imagen.evaluate import suite
from imagen.evaluate.suite import Item, read_suite, run_suite


def test_the_packaged_suite_has_200_prompts_in_eleven_categories():
    items = read_suite("imagen200")
    assert len(items) == len({item.prompt for item in items}) == 200
    assert len({item.category for item in items}) == 11
    assert all(sum(item.category == category for item in items) >= 18 for category in {item.category for item in items})


def test_other_peoples_tables(tmp_path):
    drawbench = tmp_path / "drawbench.csv"
    drawbench.write_text('Prompts,Category\n"A cat, and a dog",Colors\nTwo birds,Counting\n\n')
    assert read_suite(drawbench) == [("Colors", "A cat, and a dog"), ("Counting", "Two birds")]
    parti = tmp_path / "parti.tsv"
    parti.write_text("Prompt\tCategory\tChallenge\tNote\na city\tOutdoor\tBasic\t\n")
    assert read_suite(parti) == [("Outdoor", "a city")]
    (tmp_path / "plain.csv").write_text("prompt\na lake\n")
    assert read_suite(tmp_path / "plain.csv") == [("all", "a lake")]


@pytest.mark.parametrize("content, message", [
    ("category,text\nx,y\n", "has no column `prompt`"),
    ("category,prompt\nonly one\n", "line 2: 1 fields"),
    ("category,prompt\n", "contains no prompts"),
    ("", "has no column"),
    (b"prompt\n\xff\n", "not a text file"),
    ("category,prompt\nx,a\rb\n", "line 2: new-line character seen in unquoted field"),
])  # fmt: skip
def test_files_that_are_no_suites(tmp_path, content, message):
    path = tmp_path / "suite.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=message):
        read_suite(path)


def test_unknown_names():
    with pytest.raises(UserError, match="did you mean 'imagen200'"):
        read_suite("imagen20")


def test_sheets_by_category_and_resuming(tmp_path):
    items = read_suite("imagen200")[16:20]  # two categories
    report = run_suite(cascade(), items, tmp_path / "out", n=2, stages=1, steps=1, **QUICK)
    assert {name: entry["prompts"] for name, entry in report["categories"].items()} == {"color": 2, "conflicting": 2}
    assert sorted(path.name for path in (tmp_path / "out" / "sheets").iterdir()) == ["color.png", "conflicting.png"]
    assert Image.open(tmp_path / "out" / "sheets" / "color.png").width >= 4 * 256
    assert len(list((tmp_path / "out").glob("[0-9]*.png"))) == 8
    assert json.loads((tmp_path / "out" / "suite.json").read_text()) == report
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("[0-9]*.png")}
    assert run_suite(cascade(), items, tmp_path / "out", n=2, stages=1, steps=1, **QUICK) == report
    assert times == {path: path.stat().st_mtime_ns for path in times}, "finished images are not sampled again"


def test_sheets_are_distinct_and_limited(tmp_path, monkeypatch):
    monkeypatch.setattr(suite, "SHEET_PICTURES", 2)
    items = [Item("a-b-2", "cat"), Item("A/B", "dog"), *(Item("a-b", prompt) for prompt in ("cow", "fish", "bird"))]
    run_suite(cascade(), items, tmp_path, stages=1, steps=1, **QUICK)
    widths = {path.name: Image.open(path).width for path in (tmp_path / "sheets").iterdir()}
    assert set(widths) == {"a-b-2.png", "a-b.png", "a-b-3.png"}
    assert widths["a-b.png"] < widths["a-b-3.png"] < 3 * 256, "two images of three"
