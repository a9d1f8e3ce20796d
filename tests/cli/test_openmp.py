"""Check the settings of OpenMP in the process of a command, as its runtime library reports them."""

import os
import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    ("variables", "expected"),
    [({}, "10000"), ({"GOMP_SPINCOUNT": "77"}, "77"), ({"OMP_WAIT_POLICY": "passive"}, "0")],
    ids=["default", "spin count of the user", "policy of the user"],
)
def test_idle_threads_do_not_spin_for_long(variables, expected):
    inherited = {k: v for k, v in os.environ.items() if k not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    done = subprocess.run(
        [sys.executable, "-m", "imagen", "--version"],  # it imports torch
        env={**inherited, **variables, "OMP_DISPLAY_ENV": "VERBOSE"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    counts = [line.split("'")[1] for line in done.stderr.splitlines() if "GOMP_SPINCOUNT" in line]
    if not counts:
        pytest.skip("torch uses another OpenMP library than GNU's")
    assert set(counts) == {expected}
