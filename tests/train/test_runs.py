"""Test the scripts in runs/ with fake Slurm commands, on one host with two processes."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import imagen
from imagen.train.checkpoint import checkpoint_paths

ROOT = Path(imagen.__file__).parents[1]
RUNS = ROOT / "runs"
FIELDS = {"train.steps": 2000, "train.checkpoint_every": 500, "train.log_every": 1, "train.precision": "fp32"}


@pytest.fixture
def slurm(tmp_path):
    """Return the environment of a job. The file `calls` records the job's calls of scontrol."""
    commands = {
        "scontrol": f'case $1 in show) echo localhost;; *) echo "$@" >> {tmp_path}/calls;; esac',
        "srun": 'while [[ $1 == --* ]]; do shift; done; exec "$@"',
        "imagen": f'exec {sys.executable} -m imagen "$@"',
        "torchrun": f'exec {sys.executable} -m torch.distributed.run "$@"',
    }
    (tmp_path / "bin").mkdir()
    for name, script in commands.items():
        (tmp_path / "bin" / name).write_text(f"#!/usr/bin/env bash\n{script}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    job = {"SLURM_JOB_NODELIST": "n1", "SLURM_JOB_NUM_NODES": "1", "SLURM_JOB_ID": "7", "GPUS_PER_NODE": "2"}
    job |= {"RESTARTS": "0", "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "PORT": "0", "OMP_NUM_THREADS": "1"}
    return {**os.environ, **job, "RUN": str(tmp_path / "run"), "PYTHONPATH": str(ROOT)}


@pytest.mark.slow
def test_preempted_job_is_requeued(artifacts, tmp_path, slurm):
    command = [str(RUNS / "slurm.sh"), "debug_64", *(word for n, v in FIELDS.items() for word in (f"--{n}", str(v)))]
    run, environment = tmp_path / "run", {**slurm, "DATA": str(artifacts / "shards")}
    with open(tmp_path / "out", "w") as out:
        job = subprocess.Popen(command, env=environment, stdout=out, stderr=out, start_new_session=True)
        try:
            while job.poll() is None and "step 2/" not in (tmp_path / "out").read_text():
                time.sleep(0.05)
            (torchrun,) = Path(f"/proc/{job.pid}/task/{job.pid}/children").read_text().split()
            os.kill(int(torchrun), signal.SIGUSR1)
            job.wait(timeout=90)
        finally:
            if job.poll() is None:
                os.killpg(job.pid, signal.SIGKILL)
    reported = (tmp_path / "out").read_text()
    assert "stopped by SIGUSR1" in reported and "2 x cpu" in reported, reported
    assert (tmp_path / "calls").read_text() == "requeue 7\n", reported
    assert len(checkpoint_paths(run / "checkpoints")) == 1
    assert json.loads((run / "status.json").read_text())["finished"] is False

    (step,) = (int(path.name.removeprefix("step-")) for path in checkpoint_paths(run / "checkpoints"))
    again = subprocess.run([*command, "--train.steps", str(step + 2)], env=environment, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    assert f"resuming from step {step}" in again.stdout
    assert json.loads((run / "status.json").read_text())["finished"] is True
    assert (tmp_path / "calls").read_text() == "requeue 7\n"  # and not requeued again


def test_failed_job_is_not_requeued(artifacts, tmp_path, slurm):
    environment = {**slurm, "DATA": str(artifacts / "shards")}
    command = [str(RUNS / "slurm.sh"), "debug_64", "--train.batch_size", "3"]
    failed = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert failed.returncode != 0
    assert "imagen: train.batch_size 3 is not divisible by 2 ranks; use 4" in failed.stderr
    assert not (tmp_path / "calls").exists()


@pytest.mark.parametrize("script", sorted(RUNS.glob("*.sh")), ids=lambda path: path.name)
def test_scripts_are_complete(script):
    subprocess.run(["bash", "-n", str(script)], check=True)
    assert os.access(script, os.X_OK)
    if "\n#SBATCH" in script.read_text():
        (nodes,) = [line for line in script.read_text().splitlines() if "--nodes=" in line]
        assert f"--nodes={int(script.stem.rsplit('_', 1)[1]) // 8} --gpus-per-node=8" in nodes
