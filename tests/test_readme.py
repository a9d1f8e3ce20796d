"""Execute the commands of the README unchanged, with tiny models and few objects in place of the real ones."""

import re
import shlex
from pathlib import Path

import pytest

from imagen.cli import main

README = Path(__file__).parent.parent / "README.md"
SMALLER = {"emoji_64": "debug_64", "emoji_256": "debug_256", "--sizes 64,256": "--sizes 64,256 --objects 4"}


def commands(heading: str) -> list[list[str]]:
    """Return the commands of the first shell block under a heading."""
    block = re.search(rf"## {heading}.*?```bash\n(.*?)```", README.read_text(), re.DOTALL)
    assert block is not None
    return [shlex.split(line, comments=True) for line in block[1].splitlines()]


def test_train_your_own_cascade(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for command in commands("Train your own cascade"):
        line = shlex.join(command[1:])
        for real, small in SMALLER.items():
            line = line.replace(real, small)
        if command[1] == "train":
            line += " --train.steps 2 --train.batch_size 2 --train.gap_samples 2 --stage.sampling.steps 2"
        assert command[0] == "imagen"
        with pytest.raises(SystemExit) as end:
            main(shlex.split(line))
        assert end.value.code == 0, line
    assert (tmp_path / "pictures" / "0000.png").exists()
    assert (tmp_path / "upscaled" / "0000.png").exists()


def test_every_linked_page_exists() -> None:
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", README.read_text()):
        assert (README.parent / target).exists(), target
