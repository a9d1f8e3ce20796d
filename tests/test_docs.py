"""Check that links in the documentation resolve, and that files and functions it names exist."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
CURRENT = [page for page in PAGES if page.name not in ("LOG.md", "glossary.md")]  # these two also name former files
FOLDERS = "imagen|tests|benchmarks|runs|deploy|examples"


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def anchors(page: Path) -> set[str]:
    """Return the anchors that GitHub and the site generate for the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_resolve(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    for target in re.findall(r"\]\((?!http)([^)\s]+)\)", text):
        path, _, anchor = target.partition("#")
        linked = (page.parent / path).resolve() if path else page
        assert linked.exists(), target
        if anchor:
            assert anchor in anchors(linked), target


@pytest.mark.parametrize("page", CURRENT, ids=name)
def test_referenced_files_exist(page: Path) -> None:
    for path in re.findall(rf"(?<![\w/.-])((?:{FOLDERS})/[\w/.-]*\w)", page.read_text()):
        generated = path.startswith("runs/") and not (ROOT / path).suffix  # a user's run folder
        assert generated or (ROOT / path).exists(), path


def test_functions_in_the_formula_table_exist() -> None:
    page = (ROOT / "docs" / "reference" / "formulas.md").read_text()
    rows = [line.rsplit(" | ", 1)[1] for line in page.splitlines() if line.startswith("| ") and ".py: " in line]
    assert len(rows) > 50
    for row in rows:
        file = None
        for words in re.findall(r"`([^`]+)`", row):
            path, separator, function = words.rpartition(": ")
            file = ROOT / "imagen" / path if separator else file
            assert file is not None and file.exists(), words
            text = file.read_text()
            for part in function.split("."):
                assert re.search(rf"\b(?:def|class) {part}\b|^{part}\b", text, re.MULTILINE), words
