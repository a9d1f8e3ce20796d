"""Nothing is reported on healthy runs, cascades and shards."""

import re
from pathlib import Path

import pytest

from imagen.doctor.checks import CHECKS, FINDINGS


def test_a_healthy_run(healthy, found):
    report = found.report(healthy.run, data=healthy.shards)
    assert report.findings == ()
    ran = {check.name for check in report.checks if check.measured}
    assert ran == {check.name for check in CHECKS} - {"super-resolution"}
    measured = {check.name: check.measured[0].numbers for check in report.checks if check.measured}
    assert measured["captions"] == {"captions": 96, "distinct": 12, "most_frequent": 0.0833, "empty": 0.0}
    assert measured["images"] | {"lowest_value": 30, "highest_value": 240, "grey": 0.0} == measured["images"]
    assert measured["loss by noise level"]["ratio_at_logsnr"]["0"] < 0.3
    assert measured["embeddings"]["distance_from_encoder"] < 0.01  # rounding to bfloat16


def test_a_healthy_run_without_data(healthy, found):
    report = found.report(healthy.run, quick=True)
    assert report.findings == ()
    skipped = {check.name: check.skipped for check in report.checks}
    assert "give --data" in skipped["loss by noise level"] and skipped["guidance"] == "left out by --quick"
    assert skipped["samples"] is None


def test_a_healthy_cascade_and_healthy_shards(healthy, found):
    assert found(healthy.run / "export", data=healthy.shards) == set()
    report = found.report(healthy.shards)
    assert (report.kind, report.findings) == ("shards", ())
    assert {check.name for check in report.checks if check.measured} == {
        *("captions", "images", "duplicates", "embeddings")
    }


def test_the_documentation_lists_all_findings():
    page = (Path(__file__).parents[2] / "docs" / "howto" / "doctor.md").read_text()
    assert set(re.findall(r"^\| `([a-z0-9-]+)`", page, re.M)) == set(FINDINGS)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.name)
def test_checks_are_complete(check):
    assert check.title and check.finds and isinstance(check.slow, bool)
