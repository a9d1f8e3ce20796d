"""A healthy run that all tests of the doctor share; each copies it and plants a fault."""

from dataclasses import dataclass
from pathlib import Path

import patients
import pytest
import torch

from imagen.cascade import Cascade
from imagen.doctor.checks import CHECKS
from imagen.doctor.examine import Report, examine
from imagen.doctor.subject import Subject

STEPS = 80


@dataclass(frozen=True)
class Healthy:
    shards: Path
    run: Path

    def cascade(self) -> Cascade:
        return Cascade.load(self.run)


@pytest.fixture(scope="session")
def healthy(tmp_path_factory) -> Healthy:
    """Shards of discs, and a run trained on them. To be read only."""
    folder = tmp_path_factory.mktemp("healthy")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    shards = patients.write_shards(folder / "shards", patients.discs(96), patients.discs(48, seed=1))
    run = patients.train_discs(folder / "run", shards, STEPS)
    torch.set_num_threads(threads)
    return Healthy(shards, run)


@pytest.fixture
def found():
    """Return the names of all findings of a subject: of all checks, or of those named."""

    def names(path: Path | str, *checks: str, **options: object) -> set[str]:
        return {finding.name for finding in report(path, *checks, **options).findings}

    def report(path: Path | str, *checks: str, **options: object) -> Report:
        unknown = set(checks) - {check.name for check in CHECKS}
        assert not unknown, unknown
        subject = Subject(path, **{"encoder": patients.Words(), **options})
        return examine(subject, [check for check in CHECKS if not checks or check.name in checks])

    names.report = report
    return names
