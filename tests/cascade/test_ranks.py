"""Check that `run_on_ranks` returns results by rank, reports failures and leaves no process behind."""

import os
import time

import pytest
import torch
import torch.distributed as dist
from ranks import run_on_ranks


def sum_over_ranks(start):
    value = torch.tensor([start + dist.get_rank()])
    dist.all_reduce(value)
    return int(os.environ["RANK"]), torch.get_num_threads(), value


def fail_on_rank_1():
    if dist.get_rank() == 1:
        raise KeyError("this one")
    dist.barrier()


def exit_on_rank_1():
    if dist.get_rank() == 1:
        os._exit(7)
    dist.barrier()


def hang():
    time.sleep(60)


def test_results_are_returned_by_rank():
    x = torch.rand(1000, 1000)
    (x @ x).sum()  # starts threads in this process; ranks must not inherit them
    assert run_on_ranks(4, sum_over_ranks, 10) == [(rank, 1, torch.tensor([46])) for rank in range(4)]
    assert run_on_ranks(1, sum_over_ranks, 3) == [(0, 1, torch.tensor([3]))]


def test_failing_exiting_and_hanging_ranks_are_reported():
    with pytest.raises(AssertionError, match=r"rank 1 of 2: (.|\n)*fail_on_rank_1(.|\n)*KeyError: 'this one'"):
        run_on_ranks(2, fail_on_rank_1)
    with pytest.raises(AssertionError, match="rank"):
        run_on_ranks(2, exit_on_rank_1)
    with pytest.raises(TimeoutError, match=r"ranks \[0, 1\]"):
        run_on_ranks(2, hang, timeout=2)
