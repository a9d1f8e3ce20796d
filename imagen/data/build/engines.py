"""Run the items of a large job in one process, in several, or on a cluster (`imagen.data.build.cluster`)."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any, Protocol

from imagen.errors import UserError

Work = Callable[[Any], Any]  # from one item to its result, both JSON


class Engine(Protocol):
    """An engine that maps a function over items with its workers."""

    def map(self, make: Callable[[], Work], items: Sequence[Any], probe_file: Path) -> Iterator[tuple[int, Any]]:
        """Yield (index of the item, result) for every item, in order of completion.

        make: picklable; each worker calls it once. It opens the resources that all items share, and returns a function
            of one item. The result must depend only on the item, because an engine may run an item again if its worker
            was killed.
        probe_file: a file that must be the same for every worker as for this process.

        Raises the first UserError that a worker raises, and UserError if the engine cannot continue.
        """
        ...


@dataclass(frozen=True)
class Processes:
    """Run items in processes on this machine, or in this process if there is one worker. A killed worker is fatal."""

    workers: int | None = None  # default: one per core, at most 16

    def map(self, make: Callable[[], Work], items: Sequence[Any], probe_file: Path) -> Iterator[tuple[int, Any]]:
        """Map as `Engine.map` does; `probe_file` is not needed on one machine."""
        workers = min(self.workers or min(os.cpu_count() or 1, 16), len(items))
        if workers <= 1:
            work = make()
            for number, item in enumerate(items):
                yield number, work(item)
            return
        # spawn: forking a process that has run torch can hang.
        context = multiprocessing.get_context("spawn")
        pool = ProcessPoolExecutor(workers, context, initializer=_init_worker, initargs=(make,))
        try:
            futures = {pool.submit(_work_in_worker, item): number for number, item in enumerate(items)}
            for future in as_completed(futures):
                yield futures[future], future.result()
        except BrokenProcessPool:
            raise UserError("a worker process was killed (out of memory?); run the same command to resume") from None
        finally:
            pool.shutdown(cancel_futures=True)


_WORK: Work | UserError


def _init_worker(make: Callable[[], Work]) -> None:
    global _WORK
    import torch

    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, lambda *_: os._exit(1))  # Ctrl-C reaches all processes; only the parent reports it
    parent = multiprocessing.parent_process()
    if parent is not None:  # otherwise a worker outlives a killed parent and writes into the next build
        threading.Thread(target=_die_with, args=(parent.sentinel,), daemon=True).start()
    try:
        _WORK = make()
    except UserError as error:  # raised here, it would break the pool
        _WORK = error


def _die_with(sentinel: int) -> None:
    wait([sentinel])
    os._exit(1)


def _work_in_worker(item: Any) -> Any:
    if isinstance(_WORK, UserError):
        raise _WORK
    return _WORK(item)
