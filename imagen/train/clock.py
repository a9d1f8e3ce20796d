"""Where the time of training goes, on which rank, and how much memory it takes.

A step ends on all ranks together, however long each of them worked: a straggler cannot be seen in the length of steps.
So the ranks compare their *own work*, noising and the forward pass, in which nothing waits for another rank but the
gathering of sharded parameters; that is left out. (DDP exchanges the order of its buckets there, once, in its second
step.) Gradients are exchanged later, in the backward pass.
"""

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule

from imagen.data.loading.batches import Batch
from imagen.system import peak_resident_bytes
from imagen.train.logging import Row
from imagen.train.ranks import Ranks


class Stopwatch:
    """Adds up pieces of a device's work. On a GPU it marks the queue and waits for nothing."""

    def __init__(self, device: torch.device):
        self.seconds = 0.0
        self._cuda = device.type == "cuda"
        self._running = False
        self._began: Any = None  # a mark: seconds, or a CUDA event
        self._pieces: list[tuple[Any, Any]] = []

    @contextmanager
    def running(self) -> Iterator[None]:
        """Around work that counts."""
        self._running = True
        self._resume()
        yield
        self._pause()
        self._running = False

    def leave_out_gathering(self, unet: nn.Module) -> None:
        """Of sharded parameters, which waits for other ranks. After `fully_shard`: its hook is to be enclosed."""
        sharded = [module for module in unet.modules() if isinstance(module, FSDPModule)]
        if not sharded:
            return
        pause, resume = torch.compiler.disable(self._pause), torch.compiler.disable(self._resume)
        for module in sharded:
            module.register_forward_pre_hook(pause, prepend=True)
            module.register_forward_pre_hook(resume)

    def collect(self) -> None:
        """Add what has been marked, and the device has done, to `seconds`."""
        done = [(began, ended) for began, ended in self._pieces if not self._cuda or ended.query()]
        self._pieces = self._pieces[len(done) :]  # it does them in order
        for began, ended in done:
            self.seconds += began.elapsed_time(ended) / 1000 if self._cuda else ended - began

    def _pause(self, *_: Any) -> None:
        if self._running:
            self._pieces.append((self._began, self._mark()))

    def _resume(self, *_: Any) -> None:
        if self._running:
            self._began = self._mark()

    def _mark(self) -> Any:
        if not self._cuda:
            return time.monotonic()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event


class Clock:
    """Time spent in training steps since the last log, how much of it was waiting for data (`timed`), how much own work
    (`working`).

    Validation, sampling and checkpoints are outside it: images_per_s is the speed of training itself.
    The estimate of the time to go counts everything.
    """

    def __init__(
        self,
        ranks: Ranks | None = None,
        unet: nn.Module | None = None,
        mfu: Callable[[float, float], float] | None = None,
        text_length: int = 0,
    ):
        """unet: as it is trained, to know what is sharded in it.
        mfu: from pictures a second and tokens a picture, where it can be told (`imagen.train.flops.build_mfu`).
        text_length: to which texts are padded at least.
        """
        self.ranks, self.mfu, self.text_length = ranks or Ranks(), mfu, text_length
        self.working = Stopwatch(self.ranks.device)
        if unet is not None:
            self.working.leave_out_gathering(unet)
        self._began = time.monotonic()
        self._steps = 0
        self._forget()

    def _forget(self) -> None:
        self.training = self.waiting = self.working.seconds = 0.0
        self.images = self.batches = self.tokens = 0

    def timed(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        while True:
            began = time.monotonic()
            try:
                batch = next(batches)
            except StopIteration:
                return
            self.waiting += time.monotonic() - began
            self.batches += 1
            self.tokens += 0 if batch.text is None else max(batch.text.shape[1], self.text_length)
            yield batch

    @contextmanager
    def step(self, images: int) -> Iterator[None]:
        """Around a step over so many images; what `timed` waited for and `working` measured lies inside."""
        began = time.monotonic()
        yield
        self.training += time.monotonic() - began
        self.working.collect()
        self.images += images
        self._steps += 1

    def row(self) -> Row:
        """Of the steps since the last row, of which there must be some. All ranks call it together."""
        self.working.collect()
        own = [self.waiting / self.training, self.working.seconds, peak_memory(self.ranks.device)]
        waits, works, memories = self.ranks.gather(torch.tensor(own, dtype=torch.float64)).T.tolist()
        images_per_s = self.images / self.training
        row: Row = {"images_per_s": images_per_s, "data_wait": max(waits)}
        if len(works) > 1:
            slowest = works.index(max(works))
            others = statistics.median(works[:slowest] + works[slowest + 1 :])
            row["data_wait_rank"] = waits.index(max(waits))
            row["slowest_rank"] = slowest
            row["slowest_by"] = works[slowest] / others - 1 if others else None
        if self.mfu is not None:
            row["mfu"] = self.mfu(images_per_s, self.tokens / self.batches)
        row["memory_gb"] = max(memories) / 1e9
        self._forget()
        return row

    @property
    def seconds_per_step(self) -> float:
        """The pace of this process so far, everything counted."""
        return (time.monotonic() - self._began) / max(1, self._steps)

    def eta(self, steps_left: int) -> float:
        """Seconds to go at that pace."""
        return steps_left * self.seconds_per_step


def peak_memory(device: torch.device) -> int:
    """The most bytes that this process has held so far: on a GPU its tensors, else all of it that was resident."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return peak_resident_bytes()
