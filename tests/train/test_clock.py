"""Test that metrics identify the straggler and the rank with the longest data wait."""

import json
import time
from dataclasses import replace

import pytest
import torch
from ranks import run_on_ranks
from toy import experiment, train_quietly

from imagen.data.loading.batches import Batch
from imagen.data.loading.loader import Loader
from imagen.models.layers import Attention
from imagen.train import data
from imagen.train.clock import StepTimer, Stopwatch, peak_memory
from imagen.train.config import ParallelConfig
from imagen.train.ranks import Ranks, process_group

BATCH = Batch(0, ["a"], ["a"], torch.zeros(1, 3, 8, 8, dtype=torch.uint8), None, torch.zeros(1, 6, 8), None)


@pytest.fixture
def now(monkeypatch):
    """Replace the clock; the fixture is a list with the time in seconds."""
    time = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: time[0])
    return time


def test_data_wait_and_compute_time_are_separate(now):
    def slow():
        for _ in range(3):
            now[0] += 1.0  # waiting for data
            yield BATCH

    clock = StepTimer(mfu=lambda images_per_s, tokens: images_per_s / 100 + tokens)
    batches = clock.timed(slow())
    for _ in range(2):
        with clock.step(8):
            next(batches)
            now[0] += 3.0  # computing
    now[0] += 2.0  # a checkpoint
    row = clock.row()
    assert 0.01 < row.pop("memory_gb") < 1000
    assert row == {"images_per_s": 2.0, "data_wait": 0.25, "mfu": 6.02}
    assert clock.eta(steps_left=10) == 50.0


class FakeRanks(Ranks):
    """Ranks with three other members of fixed (data wait, compute time, memory)."""

    def gather(self, values):
        assert values.dtype == torch.float64 and values.device.type == "cpu"
        return torch.stack([values, *torch.tensor([[0.5, 1.1, 3e9], [0.1, 2.2, 2e9], [0.2, 0.9, 1e9]]).double()])


def test_slowest_rank_is_compared_with_the_median_of_the_others(now):
    clock = StepTimer(FakeRanks())
    with clock.step(8):
        with clock.compute.running():
            now[0] += 1.0
        now[0] += 1.0
    row = clock.row()
    assert row["data_wait"] == 0.5 and row["data_wait_rank"] == 1
    assert row["slowest_rank"] == 2 and row["slowest_by"] == pytest.approx(1.2)
    assert row["memory_gb"] >= 3


class Event:
    """A CUDA event; its time is known when the device's queue has been processed."""

    def __init__(self, queue):
        self.queue, self.time = queue, None

    def record(self):
        self.queue.append(self)

    def query(self):
        return self.time is not None

    def elapsed_time(self, end):
        return 1000 * (end.time - self.time)  # fails before both are done


def test_gpu_times_are_read_after_the_step(monkeypatch):
    queue = []
    monkeypatch.setattr("torch.cuda.Event", lambda enable_timing: Event(queue))
    watch = Stopwatch(torch.device("cuda"))
    for _ in range(2):
        with watch.running():
            pass
    for seconds, event in enumerate(queue):
        event.time = seconds**2
    watch.collect()
    assert watch.seconds == (1 - 0) + (9 - 4)
    watch.collect()
    assert watch.seconds == 6


def test_memory_is_a_peak():
    before = peak_memory(torch.device("cpu"))
    torch.ones(50_000_000)
    assert peak_memory(torch.device("cpu")) >= max(before, 200_000_000)


class Late(Loader):
    def __iter__(self):
        for batch in super().__iter__():
            time.sleep(0.5)
            yield batch


def lag(parallel, shards, run, what):
    """Train while rank 1 is slow: in loading if `what` is "data", in computing if it is "work"."""
    with process_group() as ranks:
        if ranks.rank == 1 and what == "data":
            data.Loader = Late
        if ranks.rank == 1 and what == "work":
            forward = Attention.forward
            Attention.forward = lambda *arguments: time.sleep(0.1) or forward(*arguments)
        train_quietly(
            replace(experiment(steps=3, log_every=0, gap_samples=1), parallel=parallel), shards, run, ranks=ranks
        )


@pytest.mark.parametrize("what, shard", [("data", 1), ("work", 1), ("work", 2)])
def test_slow_rank_is_found(shards, tmp_path, what, shard):
    run_on_ranks(2, lag, ParallelConfig(shard=shard), shards, tmp_path, what)
    (row,) = map(json.loads, (tmp_path / "metrics.jsonl").read_text().splitlines())
    if what == "data":
        assert row["data_wait_rank"] == 1 and row["data_wait"] > 0.1
    else:  # ranks that wait for the slow one's parameters or gradients are not reported as slow
        assert row["slowest_rank"] == 1 and row["slowest_by"] > 1
