"""Kill each command at two moments, with a small run of benchmarks/kill.py. It forks, so it gets its own process."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_rerunning_killed_commands_gives_the_same_files():
    script = [sys.executable, str(ROOT / "benchmarks" / "kill.py"), "--small", "--kills", "2"]
    done = subprocess.run(
        script, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"^10 kills in \d+ s: all passed$", done.stdout, re.MULTILINE), done.stdout
    for command in ("build", "encode", "train", "export", "sample"):
        assert f"│ {command}" in done.stdout
