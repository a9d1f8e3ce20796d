"""Check that files and names in CONTRIBUTING.md exist, and that one file is enough for the additions it describes."""

import ast
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "CONTRIBUTING.md").read_text()


def table_rows(heading: str) -> list[list[str]]:
    """Return the cells of the table under a heading, without its first two rows."""
    section = PAGE.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def references(text: str) -> dict[str, list[str]]:
    """Return the names that a text lists per file: `imagen/a.py: b, C.d` gives {"imagen/a.py": ["b", "C.d"]}."""
    found = [re.fullmatch(r"([\w/.]+\.py)(?:: (.*))?", quoted) for quoted in re.findall(r"`([^`]+)`", text)]
    return {match[1]: match[2].split(", ") if match[2] else [] for match in found if match}


def defined_names(path: Path) -> set[str]:
    """Return the top-level names of a file, and Class.method."""
    names: set[str] = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        if isinstance(node, ast.ClassDef):
            names |= {f"{node.name}.{inner.name}" for inner in node.body if isinstance(inner, ast.FunctionDef)}
        if isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names |= {target.id for target in targets if isinstance(target, ast.Name)}
    return names


def test_references_and_definitions_are_parsed(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("A: int = 1\nb = 2\ndef f(): c = 3\nclass C:\n    def m(self): ...\n")
    assert defined_names(tmp_path / "a.py") == {"A", "b", "f", "C", "C.m"}
    assert references("`a/b.py: c, D.e`, and `f.py`, but no `g`") == {"a/b.py": ["c", "D.e"], "f.py": []}


def test_every_question_is_answered_with_at_most_two_files() -> None:
    answers = table_rows("Where is ...?")
    assert len(answers) == 15
    for question, answer in answers:
        assert 1 <= len(references(answer)) <= 2, question
        assert all(names for names in references(answer).values()), question


@pytest.mark.parametrize("row", table_rows("Where is ...?") + table_rows("Add something"), ids=lambda row: row[0])
def test_referenced_names_exist(row: list[str]) -> None:
    named = references(" ".join(row))
    assert named
    for file, names in named.items():
        assert set(names) <= defined_names(ROOT / file), file


ADDED = {
    "presets/mine.py": """
from dataclasses import replace
from imagen.presets.debug import debug_256
def mine_256():
    return replace(debug_256(), name="mine_256")
""",
    "cli/greet.py": """
from imagen.cli.command import Command
from imagen.cli.output import lines
COMMAND = Command(
    name="greet", help="greet", add=lambda parser: None, run=lambda options: lines({}, "good morning"), details="")
""",
    "data/sources/empty.py": """
from imagen.data.sources.base import Reader
class Empty:
    has_columns = False
    def __init__(self, path, options): ...
    @staticmethod
    def recognises(path): return path.suffix == ".empty"
    def parts(self): return []
    def read(self, part): yield from ()
READERS: dict[str, Reader] = {"empty": Empty}
""",
}
PROGRAM = """
import sys
from imagen.cli import main
from imagen.data.sources import open_source
from imagen.diffusion.samplers import create_sampler
from imagen.presets import preset

print(type(open_source(sys.argv[1])).__name__)
print(create_sampler("dpmpp_2s", {"middle": 0.25}))
print(preset("mine_256").name)
main(["greet"])
"""


def test_an_extension_needs_one_file(tmp_path: Path) -> None:
    """In a copy of the package, a new sampler, source, preset and command are found without any other edit."""
    package = tmp_path / "imagen"
    shutil.copytree(ROOT / "imagen", package, ignore=shutil.ignore_patterns("__pycache__", "*.safetensors"))
    for name, text in ADDED.items():
        (package / name).write_text(text)
    shutil.copy(ROOT / "examples" / "sampler.py", package / "diffusion" / "samplers" / "dpmpp_2s.py")
    (tmp_path / "pairs.empty").touch()
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, "pairs.empty"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == ["Empty", "DPMpp2S(middle=0.25)", "mine_256", "good morning"]
