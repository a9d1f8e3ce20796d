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
from typing import Any, Self

import torch
import torch.distributed as dist

# A server process that has only imported torch forks each rank. This is as fast as forking this process, but without
# its threads, locks and CUDA context, which do not survive a fork.
CONTEXT = multiprocessing.get_context("forkserver")
# Imports that take seconds.
PRELOADED = ("torch.distributed.fsdp", "torch.distributed.checkpoint", "torch._dynamo", "pytest")
CONTEXT.set_forkserver_preload(list(PRELOADED))


def run_on_ranks(world_size: int, function: Callable[..., Any], *args: Any, timeout: float = 60) -> list[Any]:
    """Call `function(*args)` on each of `world_size` new ranks; see `RankPool.run`. No rank outlives the call."""
    with RankPool(world_size, timeout) as ranks:
        return ranks.run(function, *args)


class RankPool:
    """Ranks in an initialised gloo group, which are started when first needed and serve several calls.

    A rank's second training costs a third of its first, because it imports nothing and torch's DTensor caches how each
    operation is sharded. RANK, LOCAL_RANK, WORLD_SIZE and LOCAL_WORLD_SIZE are set in its environment.
    """

    def __init__(self, world_size: int, timeout: float = 60) -> None:
        self.world_size, self.timeout = world_size, timeout
        self.processes: list[Any] = []
        self.connections: dict[Connection, int] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.kill()

    def run(self, function: Callable[..., Any], *args: Any) -> list[Any]:
        """Call `function(*args)` on each rank; return the results by rank.

        `function` must be defined at module level, and its arguments and result must be picklable; tensors are copied.
        Raises AssertionError, with the traceback, if a rank fails, and TimeoutError after `timeout` seconds; then the
        next call has new ranks.
        """
        call = pickle.dumps((function, args))
        try:
            if not self.processes:
                self._start()
            for connection in self.connections:
                with suppress(BrokenPipeError):  # the rank has ended, which is reported below
                    connection.send_bytes(call)
            return self._collect(time.monotonic() + self.timeout)
        except BaseException:
            self.kill()
            raise

    def kill(self) -> None:
        for process in self.processes:
            process.kill()
            process.join()
        for connection in self.connections:
            connection.close()
        self.processes, self.connections = [], {}

    def _start(self) -> None:
        self.folder = tempfile.TemporaryDirectory()
        for rank in range(self.world_size):
            connection, theirs = CONTEXT.Pipe()
            arguments = (rank, self.world_size, Path(self.folder.name) / "store", self.timeout, sys.path, theirs)
            process = CONTEXT.Process(target=_serve, args=arguments)
            process.start()
            theirs.close()
            self.processes.append(process)
            self.connections[connection] = rank

    def _collect(self, deadline: float) -> list[Any]:
        results: dict[int, Any] = {}
        waiting = dict(self.connections)
        while waiting:
            ready = wait(list(waiting), timeout=max(0.0, deadline - time.monotonic()))
            if not ready:
                raise TimeoutError(f"ranks {sorted(waiting.values())} did not end in time")
            # One failing rank makes the others fail too. If several report at once, show the one that failed first.
            reports = []
            for connection in ready:
                rank = waiting.pop(connection)
                try:
                    failed_at, value = pickle.loads(connection.recv_bytes())
                except (EOFError, ConnectionResetError):
                    failed_at, value = 0.0, "the process ended without a result"
                reports.append((failed_at, rank, value))
            failures = [report for report in reports if report[0] is not None]
            if failures:
                _, rank, why = min(failures)
                raise AssertionError(f"rank {rank} of {self.world_size}: {why}")
            results |= {rank: value for _, rank, value in reports}
        return [results[rank] for rank in sorted(results)]


def _serve(rank: int, world_size: int, store: Path, timeout: float, path: list[str], calls: Connection) -> None:
    """Run one rank's process: for each call, send (None, result), or (time, traceback) and end."""
    torch.set_num_threads(1)
    sys.path[:] = path
    for name, value in {"RANK": rank, "WORLD_SIZE": world_size}.items():
        os.environ[name] = os.environ[f"LOCAL_{name}"] = str(value)
    try:
        group = {"store": dist.FileStore(str(store), world_size), "rank": rank, "world_size": world_size}
        dist.init_process_group("gloo", timeout=timedelta(seconds=timeout), **group)
        while call := _receive(calls):
            function, args = pickle.loads(call)
            report = pickle.dumps((None, function(*args)))
            dist.barrier()  # no rank may end while others are in a collective
            calls.send_bytes(report)
    except BaseException:
        with suppress(BrokenPipeError):
            calls.send_bytes(pickle.dumps((time.monotonic(), traceback.format_exc())))
    os._exit(0)  # do not wait for gloo's threads, nor for threads that the test left running


def _receive(calls: Connection) -> bytes | None:
    """Return the next call, or None if the pool has ended."""
    try:
        return calls.recv_bytes()
    except EOFError:
        return None
