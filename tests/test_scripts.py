"""Check that `imagen` accepts every command in the scripts of the reference runs."""

import re
import shlex
from pathlib import Path

import pytest

from imagen.cli.parser import parse
from imagen.presets import preset
from imagen.train.experiment import check, override

SCRIPTS = sorted((Path(__file__).parent.parent / "runs").glob("emoji_*.sh"))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_commands_of_a_script_are_valid(script: Path) -> None:
    text = script.read_text().replace("$out", "DIR").replace("${STYLES:-}", "")
    text = re.sub(r"\$\{\w+:-(\d+)\}", r"\1", text)
    lines = [shlex.split(line) for line in text.splitlines() if line.startswith("imagen ")]
    assert len(lines) > 5
    for line in lines:
        options = parse(line[1:])
        if line[1] == "train":
            check(override(preset(options.preset), options.fields))


def test_training_commands_of_the_fluent_script_are_valid() -> None:
    """The script defines `train PRESET RUN DATA STEPS OPTION...`, which calls `imagen train`."""
    text = (SCRIPTS[0].parent / "fluent_reference.sh").read_text()
    lines = text.replace("\\\n", " ").splitlines()
    trained = [shlex.split(line)[1:] for line in lines if line.startswith("train ")]
    (shared,) = re.findall(r"(--data.workers.*(?:\\\n.*)*) \"\$@\"", text)
    assert len(trained) > 5
    for name, _, _, steps, *options in trained:
        if "--init" in options:
            begin = options.index("--init")
            options = options[:begin] + options[begin + 2 :]  # a folder
        argv = ["train", name, "--data", "D", "--out", "R", "--train.steps", steps]
        parsed = parse([*argv, *shlex.split(shared.replace("\\\n", " ")), *options])
        check(override(preset(parsed.preset), parsed.fields))


def test_scripts_are_found() -> None:
    assert SCRIPTS
