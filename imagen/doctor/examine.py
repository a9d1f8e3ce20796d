"""Run all checks on a subject."""

import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from imagen.doctor.check import Check
from imagen.doctor.checks import CHECKS, UNREADABLE
from imagen.doctor.finding import Finding, Measured, Skip
from imagen.doctor.subject import Subject
from imagen.errors import UserError
from imagen.progress import progress_bar

DELAY, EVERY = 2.0, 0.5  # seconds before the progress bar is shown, and between two of its updates


@dataclass(frozen=True, kw_only=True)
class Examined:
    """Hold what one check measured, or why it did not run."""

    name: str
    title: str
    measured: tuple[Measured, ...]
    skipped: str | None  # why; None: it ran
    seconds: float

    @property
    def findings(self) -> tuple[Finding, ...]:
        """The findings of all places."""
        return tuple(finding for measured in self.measured for finding in measured.findings)


@dataclass(frozen=True, kw_only=True)
class Report:
    """Hold the results of all checks of a subject."""

    subject: str
    kind: str
    checks: tuple[Examined, ...]

    @property
    def findings(self) -> tuple[Finding, ...]:
        """All findings, problems first; of one name at one place, or with one explanation, only the first."""
        first: dict[tuple[str, str], Finding] = {}
        for check in self.checks:
            for finding in check.findings:
                place = finding.explanation if finding.name == UNREADABLE else finding.where
                first.setdefault((finding.name, place), finding)
        return tuple(sorted(first.values(), key=lambda finding: finding.severity != "problem"))

    def to_json(self) -> dict[str, Any]:
        """Return the report as JSON: "findings", and under "checks" everything that was measured."""
        report = {
            "subject": self.subject,
            "kind": self.kind,
            "healthy": not self.findings,
            "findings": [asdict(finding) for finding in self.findings],
            "checks": [
                {
                    "name": check.name,
                    "skipped": check.skipped,
                    "seconds": round(check.seconds, 2),
                    "measured": [{"where": each.where, **each.numbers} for each in check.measured],
                }
                for check in self.checks
            ],
        }
        return _strict(report)


def examine(subject: Subject, checks: Sequence[Check] = CHECKS, *, progress: bool = False) -> Report:
    """Run `checks` in order; one that lacks something is skipped, with the reason.

    progress: show a bar on stderr after two seconds. A UserError of a check becomes the finding "unreadable".
    """
    done = []
    shown = time.monotonic() + DELAY
    with progress_bar(total=len(checks), unit="check", leave=False, delay=DELAY, disable=not progress) as bar:

        def say(text: str) -> None:
            nonlocal shown
            due = time.monotonic() > shown
            bar.set_description(text, refresh=due)
            if due:
                shown = time.monotonic() + EVERY

        subject.say = say
        for check in checks:
            say(check.name)
            done.append(_run(check, subject))
            bar.update()
    return Report(subject=subject.name, kind=subject.kind, checks=tuple(done))


def _strict(value: Any) -> Any:
    """Return a JSON value with None for NaN and infinity, which strict JSON does not have."""
    if isinstance(value, dict):
        return {name: _strict(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_strict(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _unreadable(check: Check, error: UserError) -> Finding:
    """Return the finding of a check that failed on damaged or unsuitable files."""
    return Finding(
        name=UNREADABLE,
        severity="problem",
        where=check.name,
        numbers={},
        explanation=str(error),
        remedy="Repair this first; it also prevents training or sampling.",
    )


def _run(check: Check, subject: Subject) -> Examined:
    began, measured, skipped = time.monotonic(), [], None
    try:
        if subject.quick and check.slow:
            raise Skip("left out by --quick")
        for each in check(subject):
            measured.append(each)
    except Skip as reason:
        skipped = str(reason)
    except UserError as error:
        measured.append(Measured(where=check.name, numbers={}, findings=(_unreadable(check, error),)))
    return Examined(
        name=check.name,
        title=check.title,
        measured=tuple(measured),
        skipped=skipped,
        seconds=time.monotonic() - began,
    )
