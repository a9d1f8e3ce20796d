"""Copies of what one pass over the whole path makes, to be damaged."""

import shutil
from pathlib import Path

import pytest


@pytest.fixture
def copy(made, tmp_path):
    """A copy of a part of `made`, to be damaged."""

    def make(name: str) -> Path:
        return Path(shutil.copytree(made / name, tmp_path / name))

    return make
