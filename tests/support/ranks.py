"""Run several ranks on one host for tests: processes connected by gloo, with one thread each."""

import multiprocessing
import os
import pickle
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

# A server process that has only imported torch forks each rank. This is as fast as forking this process, but without
# its threads, locks and CUDA context, which do not survive a fork.
CONTEXT = multiprocessing.get_context("forkserver")
# Imports that take seconds.
PRELOADED = ("torch.distributed.fsdp", "torch.distributed.checkpoint", "torch._dynamo", "pytest")
CONTEXT.set_forkserver_preload(list(PRELOADED))


def run_on_ranks(world_size: int, function: Callable[..., Any], *args: Any, timeout: float = 60) -> list[Any]:
    """Call `function(*args)` on each of `world_size` ranks, in an initialised gloo group; return the results by rank.

    `function` must be defined at module level, and its arguments and result must be picklable; tensors are copied.
    RANK, LOCAL_RANK, WORLD_SIZE and LOCAL_WORLD_SIZE are set in its environment. No rank outlives the call.
    Raises AssertionError, with the traceback, if a rank fails, and TimeoutError after `timeout` seconds.
    """
    with tempfile.TemporaryDirectory() as folder:
        call = pickle.dumps((function, args))
        receivers, ranks = {}, []
        try:
            for rank in range(world_size):
                receiver, sender = CONTEXT.Pipe(duplex=False)
                arguments = (rank, world_size, Path(folder) / "store", timeout, sys.path, call, sender)
                ranks.append(CONTEXT.Process(target=_rank, args=arguments))
                ranks[-1].start()
                sender.close()
                receivers[receiver] = rank
            return _collect(receivers, time.monotonic() + timeout)
        finally:
            for process in ranks:
                process.kill()
                process.join()


def _collect(receivers: dict[Connection, int], deadline: float) -> list[Any]:
    results: dict[int, Any] = {}
    world_size = len(receivers)
    while receivers:
        ready = wait(list(receivers), timeout=max(0.0, deadline - time.monotonic()))
        if not ready:
            raise TimeoutError(f"ranks {sorted(receivers.values())} did not end in time")
        # One failing rank makes the others fail too. If several report at once, show the one that failed first.
        reports = []
        for receiver in ready:
            rank = receivers.pop(receiver)
            try:
                failed_at, value = pickle.loads(receiver.recv_bytes())
            except EOFError:
                failed_at, value = 0.0, "the process ended without a result"
            reports.append((failed_at, rank, value))
        failures = [report for report in reports if report[0] is not None]
        if failures:
            _, rank, why = min(failures)
            raise AssertionError(f"rank {rank} of {world_size}: {why}")
        results |= {rank: value for _, rank, value in reports}
    return [results[rank] for rank in sorted(results)]


def _rank(
    rank: int, world_size: int, store: Path, timeout: float, path: list[str], call: bytes, sender: Connection
) -> None:
    """Run one rank's process: send (None, result), or (time, traceback)."""
    torch.set_num_threads(1)
    sys.path[:] = path
    for name, value in {"RANK": rank, "WORLD_SIZE": world_size}.items():
        os.environ[name] = os.environ[f"LOCAL_{name}"] = str(value)
    try:
        group = {"store": dist.FileStore(str(store), world_size), "rank": rank, "world_size": world_size}
        dist.init_process_group("gloo", timeout=timedelta(seconds=timeout), **group)
        function, args = pickle.loads(call)
        report = pickle.dumps((None, function(*args)))
        dist.barrier()  # no rank may exit while others are in a collective
    except BaseException:
        report = pickle.dumps((time.monotonic(), traceback.format_exc()))
    with suppress(BrokenPipeError):
        sender.send_bytes(report)
    sender.close()
    os._exit(0)  # do not wait for gloo's threads, nor for threads that the test left running
