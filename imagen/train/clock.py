"""Measure training time, the time of each rank, and memory.

A step ends on all ranks at the same time, so its duration does not reveal a straggler. The ranks therefore compare
their *compute time*, the time of the forward process and the forward pass. In these, a rank waits for others only to
gather sharded parameters, and that wait is excluded. (DDP also exchanges the order of its buckets there, once, in its
second step.) Gradients are exchanged later, in the backward pass.
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
from imagen.train.meter import Row
from imagen.train.ranks import Ranks


class Stopwatch:
    """Accumulates the duration of a device's work. On a GPU it records events and never synchronises."""

    def __init__(self, device: torch.device):
        self.seconds = 0.0
        self._cuda = device.type == "cuda"
        self._running = False
        self._began: Any = None  # seconds, or a CUDA event
        self._pieces: list[tuple[Any, Any]] = []

    @contextmanager
    def running(self) -> Iterator[None]:
        """Time the work inside the block."""
        self._running = True
        self._resume()
        yield
        self._pause()
        self._running = False

    def exclude_all_gather(self, unet: nn.Module) -> None:
        """Exclude the time to gather sharded parameters. Call this after `fully_shard`, to run around its hooks."""
        sharded = [module for module in unet.modules() if isinstance(module, FSDPModule)]
        if not sharded:
            return
        pause, resume = torch.compiler.disable(self._pause), torch.compiler.disable(self._resume)
        for module in sharded:
            module.register_forward_pre_hook(pause, prepend=True)
            module.register_forward_pre_hook(resume)

    def collect(self) -> None:
        """Add the intervals that the device has completed to `seconds`."""
        done = [(began, ended) for began, ended in self._pieces if not self._cuda or ended.query()]
        self._pieces = self._pieces[len(done) :]  # they complete in order
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


class StepTimer:
    """Measures training steps since the last row: total time, data wait (`timed`) and compute time (`compute`).

    Validation, sampling and checkpoints are excluded from images_per_s, the throughput of the training steps, but
    included in the estimate of the remaining time.
    """

    def __init__(
        self,
        ranks: Ranks | None = None,
        unet: nn.Module | None = None,
        mfu: Callable[[float, float], float] | None = None,
        text_length: int = 0,
    ):
        """Start measuring.

        unet: the network in training, searched for sharded modules. mfu: a function of images per second and tokens per
        image (`imagen.train.flops.build_mfu`); None: no MFU. text_length: minimum length to which texts are padded.
        """
        self.ranks, self.mfu, self.text_length = ranks or Ranks(), mfu, text_length
        self.compute = Stopwatch(self.ranks.device)
        if unet is not None:
            self.compute.exclude_all_gather(unet)
        self._began = time.monotonic()
        self._steps = 0
        self._reset()

    def _reset(self) -> None:
        self.training = self.waiting = self.compute.seconds = 0.0
        self.images = self.batches = self.tokens = 0

    def timed(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """Yield the batches, and add the time spent waiting for them to the data wait."""
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
        """Time a step over `images` images; use `timed` and `compute` inside the block."""
        began = time.monotonic()
        yield
        self.training += time.monotonic() - began
        self.compute.collect()
        self.images += images
        self._steps += 1

    def row(self) -> Row:
        """Return the measurements of the steps since the last row, at least one. All ranks call this together."""
        self.compute.collect()
        own = [self.waiting / self.training, self.compute.seconds, peak_memory(self.ranks.device)]
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
        self._reset()
        return row

    @property
    def seconds_per_step(self) -> float:
        """Mean seconds per step of this process so far, including validation, sampling and checkpoints."""
        return (time.monotonic() - self._began) / max(1, self._steps)

    def eta(self, steps_left: int) -> float:
        """Return the estimated seconds for `steps_left` steps."""
        return steps_left * self.seconds_per_step


def peak_memory(device: torch.device) -> int:
    """Return the peak memory of this process in bytes: allocated tensors on a GPU, else resident memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return peak_resident_bytes()
