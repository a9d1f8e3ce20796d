"""Check that the package has no import cycles, including imports inside functions and imports for types."""

import ast
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "imagen"
# Known cycles: {file: the files that it must stop importing}.
TOLERATED: dict[str, set[str]] = {}


def modules() -> dict[str, Path]:
    """Return the files of all modules by name; the file of a package is its `__init__`."""
    found = {}
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imported(tree: ast.AST, known: set[str]) -> set[str]:
    """Return the known modules that a file imports. `from a import b` is a.b if that is a module, else a."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            assert node.level == 0, "relative imports are not allowed"
            names |= {full if (full := f"{node.module}.{alias.name}") in known else node.module for alias in node.names}
    return names & known


def cycles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Return one cycle per group of modules that import one another, found by removing leaves repeatedly."""
    remaining = {name: set(targets) - {name} for name, targets in graph.items()}
    for _ in graph:
        needed = set().union(*remaining.values()) if remaining else set()
        remaining = {name: targets & remaining.keys() for name, targets in remaining.items()}
        remaining = {name: targets for name, targets in remaining.items() if targets and name in needed}
    found, seen = [], set()
    for start in sorted(remaining):
        path, name = [], start
        while name not in seen and name not in path and remaining.get(name):
            path.append(name)
            name = min(remaining[name])
        if name in path:
            found.append([*path[path.index(name) :], name])
        seen |= set(path)
    return found


def test_cycles_are_found():
    assert cycles({"a": {"b"}, "b": {"c"}, "c": set()}) == []
    assert cycles({"a": {"b", "d"}, "b": {"c"}, "c": {"b", "d"}, "d": set()}) == [["b", "c", "b"]]
    assert cycles({"a": {"b"}, "b": {"a"}, "c": {"d"}, "d": {"e"}, "e": {"c"}}) == [
        ["a", "b", "a"],
        ["c", "d", "e", "c"],
    ]


def test_the_graph_includes_imports_inside_functions():
    known = {"a", "a.b", "a.c"}
    tree = ast.parse("import a.b\nfrom a import c, d\ndef f():\n    from a.c import x\n    import os")
    assert imported(tree, known) == {"a", "a.b", "a.c"}


def test_there_are_no_import_cycles():
    found = modules()
    assert len(found) > 200
    graph = {name: imported(ast.parse(path.read_text(encoding="utf-8")), set(found)) for name, path in found.items()}
    for name, targets in TOLERATED.items():
        assert targets <= graph[name], f"{name} is listed as a known cycle, but is none"
        graph[name] -= targets
    assert cycles(graph) == []
