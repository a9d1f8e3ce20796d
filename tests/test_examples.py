"""Check that the commands in the examples are valid, and that the images of the examples become good samples."""

import json
import re
import runpy
import shlex
import sys
from pathlib import Path

import pytest

from imagen.cli import main
from imagen.cli.parser import parse
from imagen.presets import preset
from imagen.train.experiment import check, override

ROOT = Path(__file__).parents[1]


def commands(text: str) -> list[list[str]]:
    """Return the arguments of all `imagen` lines in a script or page."""
    return [shlex.split(line, comments=True)[1:] for line in text.splitlines() if line.startswith("imagen ")]


def script() -> str:
    """Return examples/photos.sh with its variables filled in."""
    text = (ROOT / "examples" / "photos.sh").read_text()
    text = re.sub(r"\$\{\w+:-(\w+)\}", r"\1", text)
    return text.replace("$photos", "photos").replace("$out", "out").replace("$prompt", "a meadow under a blue sky")


def test_the_tutorial_shows_the_commands_of_the_script() -> None:
    page = commands((ROOT / "docs" / "tutorial" / "photos.md").read_text())
    assert [line for line in page if line in commands(script())] == commands(script())
    for line in page:
        if "PRESET" not in line:
            parse(line)


@pytest.mark.parametrize("line", commands(script()), ids=lambda line: " ".join(line[:2]))
def test_commands_are_valid(line: list[str]) -> None:
    options = parse(line)
    if line[0] == "train":
        check(override(preset(options.preset), options.fields))


def test_the_example_photographs_become_samples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["make_photos.py", str(tmp_path / "photos")])
    runpy.run_path(str(ROOT / "examples" / "make_photos.py"), run_name="__main__")
    arguments = ["data", "build", str(tmp_path / "photos"), "--out", str(tmp_path / "shards"), "--min-side", "256"]
    with pytest.raises(SystemExit) as end:
        main([*arguments, "--workers", "1"])
    assert end.value.code == 0
    report = json.loads((tmp_path / "shards" / "00000.report.json").read_text())
    assert (report["records"], report["good"]) == (48, 48)
