"""Define findings and measurements."""

from dataclasses import dataclass, field
from typing import Any, Literal

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
