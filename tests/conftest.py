"""Provide fixtures: commands in this process, and the files of one small end-to-end run."""

import os
from pathlib import Path

import pytest
import torch
from command_line import run_imagen

if "PYTEST_XDIST_WORKER" in os.environ:
    # There is one worker per core, so more threads would compete. Processes that tests start inherit the variable.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    torch.set_num_threads(1)

# The messages of argparse are compared, and it would look for a translation of each of them on the disk.
os.environ["LANGUAGE"] = "C"

QUICK_OPTIONS = [
    *("--data.workers", "0", "--train.batch_size", "4", "--train.gap_samples", "4", "--train.precision", "fp32"),
    *("--train.log_every", "2", "--train.gap_every", "2", "--train.checkpoint_every", "2", "--train.sample_every", "4"),
]


# The slowest files. They run first, so that no worker ends minutes after the others.
SLOWEST = (
    "train/test_parallel",
    "train/test_plan",
    "test_full_disk",
    "fuzz/test_fuzz",
    "train/test_runs",
    "emoji/test_demo",
    "cli/test_train",
    "emoji/test_reference",
    "cli/test_data_build",
    "train/test_resume",
    "data/build/test_cluster",
)


def pytest_configure(config: pytest.Config) -> None:
    # Otherwise pytest-xdist starts with the files that have the most tests.
    if hasattr(config.option, "loadscopereorder"):
        config.option.loadscopereorder = False


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    rank = {name: i for i, name in enumerate(SLOWEST)}
    root = Path(__file__).parent
    items.sort(key=lambda item: rank.get(item.path.relative_to(root).with_suffix("").as_posix(), len(rank)))


@pytest.fixture(scope="session", autouse=True)
def immediate_fsync():
    """Let fsync return at once: a disk takes milliseconds for each file, and no test cuts the power."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda handle: None)
        yield


@pytest.fixture(scope="session")
def imagen():
    """Run a command that must succeed; return its stdout."""

    def run(*arguments: object) -> str:
        result = run_imagen(*arguments)
        assert result.code == 0, result.err
        return result.out

    return run


@pytest.fixture(scope="session")
def error_of():
    """Run a command that must end with exit code 2 and exactly one line on stderr; return that line."""

    def run(*arguments: object) -> str:
        result = run_imagen(*arguments)
        assert result.code == 2, result
        assert result.err.startswith("imagen: ") and result.err.count("\n") == 1 and result.err.endswith("\n"), (
            result.err
        )
        assert "Traceback" not in result.err
        return result.err

    return run


@pytest.fixture(scope="session")
def quick_options():
    """Return options of `train` that make the debug presets even faster."""
    return QUICK_OPTIONS


@pytest.fixture(scope="session")
def artifacts(imagen, tmp_path_factory) -> Path:
    """Make a folder of shards, runs of debug_64 (4 steps) and debug_256 (2 steps), and their cascade. Only read it."""
    folder = tmp_path_factory.mktemp("artifacts")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    imagen("data", "emoji", "--out", folder / "shards", "--objects", 2, "--sizes", "64,256")
    data = ["--data", folder / "shards", "--out"]
    imagen("train", "debug_64", *data, folder / "base", "--train.steps", 4, *QUICK_OPTIONS)
    imagen("train", "debug_256", *data, folder / "sr", "--train.steps", 2, *QUICK_OPTIONS)
    imagen("assemble", folder / "base", folder / "sr", "--out", folder / "cascade")
    torch.set_num_threads(threads)
    return folder
