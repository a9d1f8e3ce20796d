"""Run the GPU benchmark on a CPU at tiny sizes, to check that it works. Its measurements are ignored."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).parent.parent / "benchmarks" / "gpu.py"
WANTED = {
    "card": {"torch", "matrix_tflops", "copy_gb_per_s", "group_norm", "largest_error", "noise", "attention"},
    "train_397m": {"preset", "ms", "images_per_s", "loss", "planned_gib"},
    "if_m": {"ours", "ms", "steps_per_s"},
    "trainer": {"trainer", "step", "loss", "images_per_s"},
    "cascade": {"stage", "ms_per_step"},
}


@pytest.fixture(scope="module")
def benchmark():
    spec = importlib.util.spec_from_file_location("gpu_benchmark", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "path", [str(SCRIPT.parent), *sys.path])  # as if the script was started
        spec.loader.exec_module(module)
        yield module


@pytest.mark.parametrize("section", WANTED)
def test_dry_run(section, benchmark, monkeypatch, capsys):
    """Run the section in this process, as the process that the script starts for it does."""
    threads = torch.get_num_threads()
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), "--dry-run", "--run", section])
    with torch.random.fork_rng():
        benchmark.main()
    torch.set_num_threads(threads)
    rows = [json.loads(line.removeprefix("ROW ")) for line in capsys.readouterr().out.splitlines()]
    assert WANTED[section] <= {name for row in rows for name in row}
    if section == "card":
        assert all(row["largest_error"] < 1e-2 for row in rows if "largest_error" in row)
    if section == "trainer":
        assert [row["step"] for row in rows] == [2, 2]


def test_rows_of_sections_are_written(tmp_path):
    command = [sys.executable, str(SCRIPT), "--dry-run", "--out", str(tmp_path), "--section", "card"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "gpu.json").read_text())["card"]
    assert found["ended"] == "done" and WANTED["card"] <= {name for row in found["rows"] for name in row}, found


def test_failures_and_timeouts_are_reported(tmp_path):
    """Without a GPU, a section ends with the reason and the next section starts."""
    command = [sys.executable, str(SCRIPT), "--out", str(tmp_path), "--section", "card", "if_m"]
    subprocess.run(command, capture_output=True, text=True, timeout=300, check=True, env={"CUDA_VISIBLE_DEVICES": ""})
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert all("no NVIDIA GPU" in found[section]["ended"] for section in ("card", "if_m"))
