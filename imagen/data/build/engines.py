"""Workers for the parts of a large job: one process, several, or a cluster (`imagen.data.build.cluster`)."""

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

Work = Callable[[Any], Any]  # one item, JSON, to its result, JSON


class Engine(Protocol):
    """Maps a function over items, on whatever it has."""

    def map(self, make: Callable[[], Work], items: Sequence[Any], witness: Path) -> Iterator[tuple[int, Any]]:
        """(number of the item, result) of every item, in the order in which they are done.

        `make`, picklable, is called once by each worker: it opens what the items have in common, and returns what
        does one. That must be a function of the item alone: an item whose worker was killed is done again, if the
        engine can, and might be done twice. `witness` is a file that workers must see as this process does.
        Raises the first UserError that a worker raises, and one if it cannot go on.
        """
        ...


@dataclass(frozen=True)
class Processes:
    """Processes of this machine; with one worker, this process. A killed one ends it all."""

    workers: int | None = None  # default: one for each core, at most 16

    def map(self, make: Callable[[], Work], items: Sequence[Any], witness: Path) -> Iterator[tuple[int, Any]]:
        """As `Engine.map`; here everything sees the same files."""
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
            raise UserError("a worker process was killed (out of memory?); run the same command to go on") from None
        finally:
            pool.shutdown(cancel_futures=True)


_WORK: Work


def _init_worker(make: Callable[[], Work]) -> None:
    global _WORK
    import torch

    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, lambda *_: os._exit(1))  # Ctrl-C reaches all; only the parent has something to say
    parent = multiprocessing.parent_process()
    if parent is not None:  # else a worker outlives a parent that was killed, and writes where the next build does
        threading.Thread(target=_die_with, args=(parent.sentinel,), daemon=True).start()
    _WORK = make()


def _die_with(sentinel: int) -> None:
    wait([sentinel])
    os._exit(1)


def _work_in_worker(item: Any) -> Any:
    return _WORK(item)
