"""The examples: their commands are ones that `imagen` takes, and the newcomer's path leads from a folder to images."""

import importlib.util
import re
import runpy
import shlex
import sys
from pathlib import Path

import pytest
from PIL import Image

from imagen.cli import main
from imagen.cli.parser import parse
from imagen.presets import preset
from imagen.train.experiment import check, override

ROOT = Path(__file__).parents[1]
PATH_COMMANDS = 6
QUICKER = {"--train.steps": "2", "--n": "2"}  # values of the tutorial that the test replaces
SMALLER = ["--train.batch_size", "2", "--train.gap_samples", "2", "--train.sample_every", "0", "--data.workers", "0"]
SMALLER += ["--stage.sampling.steps", "2"]


def commands(text: str) -> list[list[str]]:
    """Return the `imagen` lines of a script or page, without the program's name."""
    return [shlex.split(line, comments=True)[1:] for line in text.splitlines() if line.startswith("imagen ")]


def page() -> str:
    return (ROOT / "docs" / "tutorial" / "photos.md").read_text()


def script() -> str:
    """Return examples/photos.sh with its variables filled in."""
    text = (ROOT / "examples" / "photos.sh").read_text()
    text = re.sub(r"\$\{\w+:-(\w+)\}", r"\1", text).replace(' --encoder "$encoder"', "")  # the default one
    return text.replace("$photos", "photos").replace("$out", "out").replace("$prompt", PROMPT)


PROMPT = re.search(r'imagen sample out/cascade "(.*?)" --n 4', page())[1]


def make_photos(folder: Path, *options: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["make_photos.py", str(folder), *options])
    runpy.run_path(str(ROOT / "examples" / "make_photos.py"), run_name="__main__")


def test_the_tutorial_has_the_commands_of_the_script() -> None:
    shown = commands(page())
    assert [line for line in shown if line in commands(script())] == commands(script())
    assert len(commands(script())) <= PATH_COMMANDS
    for line in shown:
        if "PRESET" not in line:
            parse(line)


@pytest.mark.parametrize("line", commands(script()), ids=lambda line: " ".join(line[:2]))
def test_commands_are_valid(line: list[str]) -> None:
    options = parse(line)
    if line[0] == "train":
        check(override(preset(options.preset), options.fields))


def test_the_newcomers_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """200 photographs of mixed sizes become sampled images, with the tutorial's commands and fewer steps."""
    make_photos(tmp_path / "photos", monkeypatch=monkeypatch)
    sizes = {Image.open(path).size for path in (tmp_path / "photos").glob("*.jpg")}
    assert len(list((tmp_path / "photos").glob("*.jpg"))) == 200 and len(sizes) > 100
    monkeypatch.chdir(tmp_path)
    for line in commands(script()):
        words = [QUICKER.get(before, word) for before, word in zip(["", *line], line, strict=False)]
        words += SMALLER if line[0] == "train" else ["--workers", "1"] if line[:2] == ["data", "build"] else []
        with pytest.raises(SystemExit) as end:
            main(words)
        assert end.value.code == 0, words
    assert {Image.open(path).size for path in (tmp_path / "out" / "samples").glob("0*.png")} == {(256, 256)}
    assert len(list((tmp_path / "out" / "samples").glob("0*.png"))) == 2
    tables = list((tmp_path / "out" / "shards").glob("*.rejected.jsonl"))
    rejected = [line for table in tables for line in table.read_text().splitlines()]
    too_small = sum(min(size) < 256 for size in image_sizes(tmp_path / "photos"))
    assert len(rejected) == too_small > 0 and all("too small" in line for line in rejected)


def image_sizes(folder: Path) -> list[tuple[int, int]]:
    return [Image.open(path).size for path in folder.glob("*.jpg")]


def test_landscapes_without_the_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    make_photos(tmp_path, "--count", "5", monkeypatch=monkeypatch)
    captions = [path.read_text() for path in sorted(tmp_path.glob("*.txt"))]
    assert len(captions) == 5 and all(" under a " in caption for caption in captions)
