"""Provide copies of the artifacts, for tests that damage them."""

import shutil
from pathlib import Path

import pytest


@pytest.fixture
def copy_artifact(artifacts, tmp_path):
    """Copy a folder of the artifacts, such as "cascade", for tests that damage it."""

    def make(name: str) -> Path:
        return Path(shutil.copytree(artifacts / name, tmp_path / name))

    return make
