"""Define findings, measurements, and the interface of a check."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    from imagen.doctor.subject import Subject

Severity = Literal["problem", "warning"]
Numbers = dict[str, Any]  # JSON values: numbers, short texts, or objects of them


@dataclass(frozen=True, kw_only=True)
class Finding:
    """Report one fault: what was measured, what it means, and what to do."""

    name: str  # such as "captions-alike"; docs/howto/doctor.md lists all names
    severity: Severity  # problem: samples are bad because of it; warning: they may be
    where: str  # a split of the data, a stage, or the training log
    numbers: Numbers
    explanation: str  # one or two sentences that contain the measured number
    remedy: str  # what to do


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Hold what a check measured at one place, healthy or not."""

    where: str
    numbers: Numbers
    findings: tuple[Finding, ...] = field(default=())


class Skip(Exception):
    """Raised by a check that cannot run; the message says what it needs."""


class Check(Protocol):
    """Answer one question about a subject. A new check is a class with these attributes, listed in `checks.py`."""

    @property
    def name(self) -> str:
        """Return the name of the check, such as "captions"."""
        ...

    @property
    def title(self) -> str:
        """Return the question, in a few words."""
        ...

    @property
    def finds(self) -> tuple[str, ...]:
        """Return the names of all findings that the check may report."""
        ...

    @property
    def slow(self) -> bool:
        """Return whether `--quick` leaves the check out."""
        ...

    def __call__(self, subject: "Subject", /) -> Iterator[Measured]:
        """Yield the measurements, one per split or stage. Raises Skip if the subject lacks what the check needs."""
        ...
