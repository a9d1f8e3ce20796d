"""Run the GPU benchmark on a CPU at tiny sizes, to check that it works. Its measurements are ignored."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent.parent / "benchmarks" / "gpu.py"
WANTED = {
    "card": {"torch", "matrix_tflops", "copy_gb_per_s", "group_norm", "largest_error", "noise", "attention"},
    "train_397m": {"preset", "ms", "images_per_s", "loss", "planned_gib"},
    "if_m": {"ours", "ms", "steps_per_s"},
    "trainer": {"trainer", "step", "loss", "images_per_s"},
    "cascade": {"stage", "ms_per_step"},
}


@pytest.mark.parametrize("section", WANTED)
def test_dry_run(section, tmp_path):
    command = [sys.executable, str(SCRIPT), "--dry-run", "--out", str(tmp_path), "--section", section]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "gpu.json").read_text())[section]
    assert found["ended"] == "done", found
    assert WANTED[section] <= {name for row in found["rows"] for name in row}
    if section == "card":
        assert all(row["largest_error"] < 1e-2 for row in found["rows"] if "largest_error" in row)
    if section == "trainer":
        assert [row["step"] for row in found["rows"]] == [2, 2]


def test_failures_and_timeouts_are_reported(tmp_path):
    """Without a GPU, a section ends with the reason and the next section starts."""
    command = [sys.executable, str(SCRIPT), "--out", str(tmp_path), "--section", "card", "if_m"]
    subprocess.run(command, capture_output=True, text=True, timeout=300, check=True, env={"CUDA_VISIBLE_DEVICES": ""})
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert all("no NVIDIA GPU" in found[section]["ended"] for section in ("card", "if_m"))
