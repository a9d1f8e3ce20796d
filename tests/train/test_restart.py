"""Test that torchrun restarts all ranks when one is killed, and that they resume from the last checkpoint."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from ranks import run_on_ranks
from run_state import assert_same, last_checkpoint, metrics
from toy import ENVIRONMENT, TOY, experiment, train_on_rank

from imagen.data.loading.config import DataConfig
from imagen.train.checkpoint import checkpoint_paths

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


def children(process):
    return [int(pid) for pid in Path(f"/proc/{process}/task/{process}/children").read_text().split()]


@pytest.mark.slow  # torchrun and its ranks are started twice; tests/train/test_resume.py kills a single process
def test_kill_9_of_one_rank(shards, tmp_path, rows):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    run_on_ranks(2, train_on_rank, experiment(data=DataConfig(workers=1)), shards, whole)
    command = [*TORCHRUN, "--max-restarts", "2", "--monitor-interval", "0.1", TOY, str(shards), str(killed), "20", "1"]
    out = tmp_path / "out"
    with open(out, "w") as log:
        torchrun = subprocess.Popen(command, stdout=log, stderr=log, env=ENVIRONMENT)
        try:
            while torchrun.poll() is None and not checkpoint_paths(killed / "checkpoints"):
                time.sleep(0.005)
            time.sleep(random.uniform(0, 0.2))
            os.kill(random.choice(children(torchrun.pid)), signal.SIGKILL)
            assert torchrun.wait(timeout=60) == 0, out.read_text()
        finally:
            for pid in [*children(torchrun.pid), torchrun.pid] if torchrun.poll() is None else []:
                os.kill(pid, signal.SIGKILL)
    assert "resuming from step" in out.read_text()
    assert rows(killed) == rows(whole) and len(metrics(whole)) == 7
    assert_same(last_checkpoint(killed), last_checkpoint(whole))
