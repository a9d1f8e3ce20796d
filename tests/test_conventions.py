"""Check conventions that all tests follow."""

import ast
from collections.abc import Iterable
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
PACKAGE = TESTS.parent / "imagen"
ALL_FILES = sorted(TESTS.rglob("*.py"))
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


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__") and name != "_"


def defined_names(tree: ast.AST) -> set[str]:
    """Return the names that a file defines: functions, classes, variables and attributes."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            names.add(node.attr)
    return names


def private_names(files: Iterable[Path]) -> set[str]:
    """Return the private names that files define, and those of private modules."""
    found = {name for path in files for name in defined_names(ast.parse(path.read_text()))}
    return {name for name in found | {path.stem for path in files} if is_private(name)}


def used_private_names(tree: ast.AST, private: set[str]) -> set[str]:
    """Return the uses of private names of the package: imports, attributes and strings, as in `setattr(x, "_name", y)`.

    Names that the file defines itself do not count.
    """
    private = private - defined_names(tree)
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name.startswith("imagen.") and "._" in alias.name}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "imagen":
            paths = (f"{node.module}.{alias.name}" for alias in node.names)
            found |= {path for path in paths if any(map(is_private, path.split(".")))}
        elif isinstance(node, ast.Attribute) and node.attr in private:
            found.add(ast.unparse(node))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            name = node.value.rpartition(".")[2] if node.value.startswith("imagen.") else node.value
            found |= {node.value} if name in private else set()
    return found


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


def test_uses_of_private_names_are_found() -> None:
    text = """
import imagen._a
from imagen.b import _c, d
from torch.utils._python_dispatch import TorchDispatchMode
d._hidden_example + d._elsewhere + d._own
setattr(d, "_hidden_example", 1)
patch("imagen.b._hidden_example")
d._own = "known"
"""
    uses = {"imagen._a", "imagen.b._c", "d._hidden_example", "_hidden_example", "imagen.b._hidden_example"}
    assert used_private_names(ast.parse(text), {"_hidden_example", "_own"}) == uses


def test_no_test_uses_private_names_of_the_package() -> None:
    private = private_names(list(PACKAGE.rglob("*.py")))
    found = {relative_name(path): used_private_names(ast.parse(path.read_text()), private) for path in ALL_FILES}
    assert {path: sorted(names) for path, names in found.items() if names} == {}


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
