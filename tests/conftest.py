"""The command line in this process, and what one pass over the whole path makes."""

import os
from pathlib import Path

import pytest
import torch
from command_line import command

if "PYTEST_XDIST_WORKER" in os.environ:
    # A worker per core: two threads in each would wait for one another. Processes that tests start inherit it.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    torch.set_num_threads(1)

QUICK = [
    *("--data.workers", "0", "--train.batch_size", "4", "--train.gap_samples", "4", "--train.precision", "fp32"),
    *("--train.log_every", "2", "--train.gap_every", "2", "--train.checkpoint_every", "2", "--train.sample_every", "4"),
]


# The files that take longest. Workers begin with them, lest one ends minutes after the other.
LONGEST = (
    "train/test_parallel",
    "train/test_plan",
    "test_full_disk",
    "fuzz/test_fuzz",
    "train/test_runs",
    "emoji/test_demo",
    "cli/test_train",
    "emoji/test_reference",
    "train/test_restart",
    "cli/test_data_build",
    "train/test_resume",
    "data/build/test_cluster",
)


def pytest_configure(config: pytest.Config) -> None:
    if hasattr(config.option, "loadscopereorder"):  # pytest-xdist would begin with the files of most tests
        config.option.loadscopereorder = False


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    rank = {name: place for place, name in enumerate(LONGEST)}
    root = Path(__file__).parent
    items.sort(key=lambda item: rank.get(item.path.relative_to(root).with_suffix("").as_posix(), len(rank)))


@pytest.fixture(scope="session")
def imagen():
    """Runs a command and returns its output; it must succeed."""

    def run(*arguments: object) -> str:
        done = command(*arguments)
        assert done.code == 0, done.err
        return done.out

    return run


@pytest.fixture(scope="session")
def mistake():
    """Runs a command that must end with exit code 2 and exactly one line on stderr; returns that line."""

    def run(*arguments: object) -> str:
        done = command(*arguments)
        assert done.code == 2, done
        assert done.err.startswith("imagen: ") and done.err.count("\n") == 1 and done.err.endswith("\n"), done.err
        assert "Traceback" not in done.err
        return done.err

    return run


@pytest.fixture(scope="session")
def quick():
    """Options of `train` that make the debug presets quicker still."""
    return QUICK


@pytest.fixture(scope="session")
def made(imagen, tmp_path_factory) -> Path:
    """A folder with shards, runs of debug_64 (4 steps) and debug_256 (2 steps), and their cascade. To be read only."""
    folder = tmp_path_factory.mktemp("made")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    imagen("data", "emoji", "--out", folder / "shards", "--objects", 2, "--sizes", "64,256")
    where = ["--data", folder / "shards", "--out"]
    imagen("train", "debug_64", *where, folder / "base", "--train.steps", 4, *QUICK)
    imagen("train", "debug_256", *where, folder / "sr", "--train.steps", 2, *QUICK)
    imagen("assemble", folder / "base", folder / "sr", "--out", folder / "cascade")
    torch.set_num_threads(threads)
    return folder
