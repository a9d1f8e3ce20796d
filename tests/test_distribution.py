"""Check the distribution name, and the detection of other packages that install an `imagen`."""

import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from imagen.distribution import NAME, clashes, missing

ROOT = Path(__file__).parent.parent


@pytest.fixture
def clean_environment(monkeypatch, tmp_path):
    """Set up an environment without a command or a distribution called imagen."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "path", [str(ROOT), str(tmp_path)])
    return tmp_path


def write_command(folder: Path, module: str) -> None:
    (folder / "imagen").write_text(f"#!/usr/bin/python3\nfrom {module} import main\nmain()\n")
    (folder / "imagen").chmod(0o755)


def test_our_installation_reports_no_conflict(clean_environment):
    write_command(clean_environment, "imagen_cascade")
    assert list(clashes()) == []


def test_the_command_of_another_package_is_reported(clean_environment):
    write_command(clean_environment, "imagen_pytorch.cli")
    (line,) = clashes()
    assert str(clean_environment / "imagen") in line and "python -m imagen" in line


def test_another_package_of_this_name_is_reported(clean_environment):
    info = clean_environment / "imagen-2.1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: imagen\nVersion: 2.1.0\n")
    (line,) = clashes()
    assert "imagen 2.1.0" in line and "pip uninstall imagen" in line


def test_a_foreign_module_of_this_name_is_a_one_line_error(tmp_path):
    """Run our entry point beside another project's `imagen` module."""
    (tmp_path / "imagen").mkdir()
    (tmp_path / "imagen" / "__init__.py").write_text("")
    (tmp_path / "imagen_cascade.py").write_text((ROOT / "imagen_cascade.py").read_text())
    program = [sys.executable, "-c", "from imagen_cascade import main; main()"]
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run(program, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert "another package's" in done.stderr and str(tmp_path) in done.stderr


def test_the_name_equals_the_one_in_the_metadata():
    about = metadata.metadata(NAME)
    assert about["Name"] == NAME
    for extra in ("demo", "data", "remote", "ray", "eval", "deepfloyd", "tensorboard", "serve"):
        assert extra in about.get_all("Provides-Extra")
        assert f"pip install '{NAME}[{extra}]'" in str(missing("x", extra))
    assert (ROOT / "imagen" / "py.typed").exists()


def test_messages_and_pages_recommend_no_other_package():
    """`pip install imagen` would install another project."""
    for path in [*ROOT.glob("imagen/**/*.py"), *ROOT.glob("docs/**/*.md"), ROOT / "README.md"]:
        text = path.read_text(encoding="utf-8")
        assert "pip install imagen\n" not in text and "pip install 'imagen[" not in text, path


def test_version_prints_the_details_for_a_bug_report(imagen):
    out = imagen("--version")
    assert (out.startswith(f"{NAME} ") and "torch" in out and "fp32" in out) or "bf16" in out or "fp16" in out
