"""`imagen doctor`"""

import argparse
from typing import TYPE_CHECKING, Any

from imagen.cli.command import Command
from imagen.cli.output import Result, counted

if TYPE_CHECKING:
    from imagen.doctor.examine import Examined, Report

WIDTH = 100  # of printed paragraphs


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("subject", metavar="RUN|CASCADE|SHARDS", help="a training run, a cascade, `emoji`, or shards")
    parser.add_argument("--data", metavar="SHARDS", help="shards to measure a run or a cascade on")
    parser.add_argument("--quick", action="store_true", help="measure on fewer samples, and leave slow checks out")


def run(options: argparse.Namespace) -> Result:
    from imagen.doctor.examine import examine
    from imagen.doctor.subject import Subject

    subject = Subject(options.subject, data=options.data, quick=options.quick)
    report = examine(subject, progress=True)
    return Result(report.to_json(), lambda: _show(report), code=1 if report.findings else 0)


def _show(report: "Report") -> None:
    """Print the findings as paragraphs, and what was measured as a table."""
    from textwrap import fill

    from rich.console import Console
    from rich.table import Table

    def paragraph(text: str) -> None:
        print(fill(text, WIDTH, initial_indent="  ", subsequent_indent="  ", break_on_hyphens=False))

    for finding in report.findings:
        print(f"{finding.severity}: {finding.name} ({finding.where})")
        paragraph(finding.explanation)
        paragraph(f"What to do: {finding.remedy}")
        print()
    table = Table("check", "where", "measured", "result")
    for check in report.checks:
        for measured in check.measured:
            names = ", ".join(finding.name for finding in measured.findings)
            title = check.title if measured is check.measured[0] else ""
            table.add_row(title, measured.where, _numbers(measured.numbers), names or "good")
    if table.rows:
        Console(markup=False, highlight=False).print(table)
    ran = sum(bool(check.measured) for check in report.checks)
    problems = sum(finding.severity == "problem" for finding in report.findings)
    warnings = len(report.findings) - problems
    verdict = f"{counted(problems, 'problem')}, {counted(warnings, 'warning')}" if report.findings else "healthy"
    print(f"{report.subject}: {verdict} ({counted(ran, 'check')})")
    for reason, skipped in _skipped(report.checks).items():
        paragraph(f"not checked: {', '.join(skipped)}; {reason}")


def _skipped(checks: "tuple[Examined, ...]") -> dict[str, list[str]]:
    """Return the checks that the user can enable by the reason; without those that do not apply to the subject."""
    reasons: dict[str, list[str]] = {}
    for check in checks:
        if (
            check.skipped
            and ("needs" in check.skipped or "left out" in check.skipped)
            and check.skipped != "needs a network"
        ):
            reasons.setdefault(check.skipped, []).append(check.name)
    return reasons


def _numbers(numbers: dict[str, Any]) -> str:
    """Return measured numbers as text, one row per object: "error: -6 0.31, -4 0.2"."""
    plain = [f"{_words(name)} {_value(value)}" for name, value in numbers.items() if not isinstance(value, dict)]
    lines = [", ".join(plain)] if plain else []
    for name, value in numbers.items():
        if isinstance(value, dict):
            lines.append(f"{_words(name)}: " + ", ".join(f"{key} {_value(item)}" for key, item in value.items()))
    return "\n".join(lines)


def _value(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, dict):
        return "(" + ", ".join(f"{_words(name)} {_value(item)}" for name, item in value.items()) + ")"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _words(name: str) -> str:
    return name.replace("_", " ")


COMMAND = Command(
    name="doctor",
    help="find out why samples are noise, grey, oversaturated, all alike, or unrelated to the prompt",
    add=add,
    run=run,
    details="Measures data, weights, training log, loss and samples, and says for each fault what was measured, what\n"
    "it means and what to do. With --data, networks are measured on these images and their captions; without,\n"
    "only by their weights and samples. Exit code: 0 healthy, 1 findings, 2 a mistake.\n\n"
    "  imagen doctor shards\n"
    "  imagen doctor runs/base --data shards\n"
    "  imagen doctor emoji --quick",
)
