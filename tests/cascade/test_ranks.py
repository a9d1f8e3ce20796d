"""The helper that starts ranks returns results by rank, reports failures and leaves no process behind."""

import os
import time

import pytest
import torch
import torch.distributed as dist
from ranks import run_on_ranks


def total(start):
    value = torch.tensor([start + dist.get_rank()])
    dist.all_reduce(value)
    return int(os.environ["RANK"]), torch.get_num_threads(), value


def fail_on_1():
    if dist.get_rank() == 1:
        raise KeyError("this one")
    dist.barrier()


def die_on_1():
    if dist.get_rank() == 1:
        os._exit(7)
    dist.barrier()


def hang():
    time.sleep(60)


def test_results_come_back_by_rank():
    x = torch.rand(1000, 1000)
    (x @ x).sum()  # the threads of this process are of no concern to the ranks
    assert run_on_ranks(4, total, 10) == [(rank, 1, torch.tensor([46])) for rank in range(4)]
    assert run_on_ranks(1, total, 3) == [(0, 1, torch.tensor([3]))]


def test_failures_are_reported():
    with pytest.raises(AssertionError, match=r"rank 1 of 2: (.|\n)*fail_on_1(.|\n)*KeyError: 'this one'"):
        run_on_ranks(2, fail_on_1)
    with pytest.raises(AssertionError, match="rank"):
        run_on_ranks(2, die_on_1)
    with pytest.raises(TimeoutError, match=r"ranks \[0, 1\]"):
        run_on_ranks(2, hang, timeout=2)
