"""Faults planted in the log or the config of a run are found by name, and nothing else is reported."""

import dataclasses
import math

import pytest
from patients import healthy_rows, log_only


def changed(count=20, **fields):
    """Return healthy rows with fields that are functions of the row's number, 1 and up."""
    rows = healthy_rows(count)
    return [row | {name: value(i) for name, value in fields.items()} for i, row in enumerate(rows, 1)]


def optim(**fields):
    return lambda e: dataclasses.replace(e, optim=dataclasses.replace(e.optim, **fields))


def train(**fields):
    return lambda e: dataclasses.replace(e, train=dataclasses.replace(e.train, **fields))


@pytest.mark.parametrize(
    "fault, rows, change",
    [
        ("learning-rate-zero", changed(lr=lambda i: 0.0), optim()),
        ("warmup-unfinished", changed(lr=lambda i: 2e-3 * i / 200), optim(warmup_steps=10_000)),
        ("learning-rate-ended", changed(lr=lambda i: 2e-3 if i < 12 else 1e-9), optim()),
        ("nonfinite-steps", changed(nonfinite=lambda i: 5), optim()),
        ("samples-replaced", changed(bad_samples=lambda i: 400), optim()),
        ("gradient-zero", changed(grad_norm=lambda i: 0.0), optim()),
        ("gradient-spikes", changed(grad_norm=lambda i: 90.0 if i == 15 else 1.0), optim()),
        ("loss-rising", changed(loss=lambda i: 0.2 + (i - 10) ** 2 / 200), optim()),
        ("loss-not-falling", changed(loss=lambda i: 0.5 + 0.001 * (-1) ** i), optim()),
        ("loss-noisy", changed(loss=lambda i: 1 / i + (0.5 if i % 3 == 0 else 0.02)), optim()),
        ("captions-shuffled", changed(), train(shuffle_captions=True)),
        ("no-text-dropout", changed(), train(text_dropout=0.0)),
    ],
)
def test_faults(fault, rows, change, tmp_path, found):
    report = found.report(log_only(tmp_path / "run", rows, change))
    assert {finding.name for finding in report.findings} == {fault}
    assert report.findings[0].remedy and report.findings[0].where == "training log"


def test_a_healthy_log(tmp_path, found):
    assert found(log_only(tmp_path / "run", healthy_rows())) == set()


def test_a_cosine_that_ends_is_healthy(tmp_path, found):
    rows = changed(lr=lambda i: 1e-3 * (1 + math.cos(math.pi * i / 20)))
    assert found(log_only(tmp_path / "run", rows)) == set()


def test_a_diverging_loss_is_stated_in_numbers(tmp_path, found):
    rows = changed(loss=lambda i: 1.0 if i < 3 else 0.2 if i < 14 else 0.5)
    (finding,) = found.report(log_only(tmp_path / "run", rows)).findings
    assert finding.name == "loss-rising" and "150% above it" in finding.explanation
    assert finding.numbers["lowest"] == pytest.approx(0.2) and finding.numbers["last"] == pytest.approx(0.5)
