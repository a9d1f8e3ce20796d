"""Check conventions that all tests follow."""

import ast
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
FILES = sorted(path for path in TESTS.rglob("*.py") if path.parent.name != "support")
MAX_LINES = 450


def imported_modules(path: Path) -> set[str]:
    """Return the top-level modules that a file imports, at its top or inside functions."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
    return {name.partition(".")[0] for name in names}


def relative_name(path: Path) -> str:
    return path.relative_to(TESTS).as_posix()


def test_no_test_imports_another_test() -> None:
    tests = {path.stem for path in FILES}
    found = {relative_name(path) for path in FILES if imported_modules(path) & tests}
    assert found == set()


def test_no_two_files_have_the_same_name() -> None:
    """Without `__init__.py` in their folders, pytest imports test files by name alone."""
    names = [path.name for path in [*FILES, *(TESTS / "support").glob("*.py")] if path.name != "conftest.py"]
    assert sorted(names) == sorted(set(names))


@pytest.mark.parametrize("path", FILES, ids=relative_name)
def test_files_are_short(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= MAX_LINES


def test_the_slowest_files_exist() -> None:
    (assignment,) = (
        node
        for node in ast.parse((TESTS / "conftest.py").read_text()).body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "SLOWEST"
    )
    slowest = ast.literal_eval(assignment.value)
    assert slowest
    assert [file for file in slowest if not (TESTS / f"{file}.py").is_file()] == []
