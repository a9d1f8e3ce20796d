"""What a run reports: metrics.jsonl, TensorBoard and one line on the console, all from the same numbers."""

import json
import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from torch import Tensor

from imagen.files import cannot_write
from imagen.train.rundir import truncate_metrics
from imagen.train.step import StepResult

BUCKETS = 4  # loss by quarter of t: loss_t0 is almost clean, loss_t3 almost noise

Row = dict[str, float | int | None]
T = TypeVar("T")


@dataclass
class Meter:
    """Sums since the last logged step. A checkpoint carries them, so that a resumed run logs the same means."""

    loss: float = 0.0
    eps_mse: float = 0.0
    images: int = 0
    bucket_loss: list[float] = field(default_factory=lambda: [0.0] * BUCKETS)
    bucket_images: list[int] = field(default_factory=lambda: [0] * BUCKETS)
    grad_norm: float = 0.0
    steps: int = 0  # applied
    nonfinite: int = 0  # skipped
    bad_samples: int = 0  # samples that the loader replaced

    def add(self, result: StepResult) -> None:
        self.bad_samples += result.bad_samples
        if result.problem is not None:
            self.nonfinite += 1
            return
        for loss, t in zip(result.losses, result.times, strict=True):
            bucket = min(int(t * BUCKETS), BUCKETS - 1)
            self.bucket_loss[bucket] += loss
            self.bucket_images[bucket] += 1
        self.loss += math.fsum(result.losses)
        self.eps_mse += math.fsum(result.eps_mse)
        self.images += len(result.losses)
        self.grad_norm += result.grad_norm
        self.steps += 1

    def row(self) -> Row:
        """Means; None where every step since the last log was skipped."""
        row: Row = {
            "loss": self.loss / self.images if self.images else None,
            "eps_mse": self.eps_mse / self.images if self.images else None,
            "grad_norm": self.grad_norm / self.steps if self.steps else None,
        }
        for bucket, (loss, images) in enumerate(zip(self.bucket_loss, self.bucket_images, strict=True)):
            if images:
                row[f"loss_t{bucket}"] = loss / images
        if self.nonfinite:
            row["nonfinite"] = self.nonfinite
        if self.bad_samples:
            row["bad_samples"] = self.bad_samples
        return row


class Clock:
    """Time spent in training steps since the last log, and how much of it was waiting for data (`timed`).

    Validation, sampling and checkpoints are outside it: images_per_s is the speed of training itself.
    The estimate of the time to go counts everything.
    """

    def __init__(self) -> None:
        self.training = self.waiting = 0.0
        self.images = 0
        self._began = time.monotonic()
        self._steps = 0

    def timed(self, batches: Iterator[T]) -> Iterator[T]:
        while True:
            began = time.monotonic()
            try:
                batch = next(batches)
            except StopIteration:
                return
            self.waiting += time.monotonic() - began
            yield batch

    @contextmanager
    def step(self, images: int) -> Iterator[None]:
        """Around a step over so many images; what `timed` waited for lies inside."""
        began = time.monotonic()
        yield
        self.training += time.monotonic() - began
        self.images += images
        self._steps += 1

    def row(self) -> Row:
        row: Row = {
            "images_per_s": self.images / self.training if self.training else None,
            "data_wait": self.waiting / self.training if self.training else None,  # fraction
        }
        self.training = self.waiting = 0.0
        self.images = 0
        return row

    def eta(self, steps_left: int) -> float:
        """Seconds to go at the pace of this process so far."""
        return (time.monotonic() - self._began) * steps_left / max(1, self._steps)


class RunLog:
    """RUN/metrics.jsonl (strict JSON, one object a logged step), RUN/tensorboard, and lines through `say`."""

    def __init__(self, run: Path, step: int, say: Callable[[str], None] = print):
        """step: the one to go on from; what was logged after it is dropped."""
        from torch.utils.tensorboard import SummaryWriter  # heavy, and nothing else here needs it

        self._path = run / "metrics.jsonl"
        truncate_metrics(self._path, step)
        try:
            self._file = open(self._path, "a", buffering=1)  # noqa: SIM115  # close() does
        except OSError as error:
            raise cannot_write(self._path, error) from None
        self._board = SummaryWriter(str(run / "tensorboard"), purge_step=step + 1)
        self._say = say

    def write(self, step: int, steps: int, row: Row, eta: float) -> None:
        row = {"step": step, **{name: _finite(value) for name, value in row.items()}}
        try:
            self._file.write(json.dumps(row, allow_nan=False) + "\n")
        except OSError as error:
            raise cannot_write(self._path, error) from error
        with self._board_errors():
            for name, value in row.items():
                if value is not None and name != "step":
                    self._board.add_scalar(name, value, step)
        self._say(console_line(row, steps, eta))

    def sync(self) -> None:
        """Onto the disk, before a checkpoint says that these steps are done."""
        try:
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise cannot_write(self._path, error) from error

    def pictures(self, name: str, picture_CHW: Tensor, step: int) -> None:
        """A sheet of samples, uint8 [3, H, W]."""
        with self._board_errors():
            self._board.add_image(name, picture_CHW, step)

    def close(self) -> None:
        with self._board_errors():
            self._file.close()
            self._board.close()

    @contextmanager
    def _board_errors(self) -> Iterator[None]:
        """TensorBoard writes in a thread of its own, and raises what happened there at a later call."""
        try:
            yield
        except OSError as error:
            raise cannot_write(self._path.with_name("tensorboard"), error) from error


def console_line(row: Row, steps: int, eta: float) -> str:
    parts = [f"step {row['step']}/{steps}"]
    for name, title, form in (
        ("loss", "loss", "{:.4f}"),
        ("grad_norm", "grad", "{:.3f}"),
        ("lr", "lr", "{:.1e}"),
        ("conditional_gap", "gap", "{:+.5f}"),
        ("nonfinite", "skipped", "{}"),
    ):
        if row.get(name) is not None:
            parts.append(f"{title} {form.format(row[name])}")
    if row.get("images_per_s") is not None:
        parts.append(f"{row['images_per_s']:.1f} images/s")
    if row.get("data_wait") is not None:
        parts.append(f"data {row['data_wait']:.0%}")
    return "  ".join([*parts, f"ETA {duration(eta)}"])


def duration(seconds: float) -> str:
    """`3 d 4 h`, `1 h 20 min`, `5 min`, `12 s`."""
    minutes = round(seconds / 60)
    if seconds < 60:
        return f"{seconds:.0f} s"
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours < 24 else f"{hours // 24} d {hours % 24} h"


def _finite(value: float | int | None) -> float | int | None:
    """Strict JSON has no NaN."""
    return value if value is None or math.isfinite(value) else None
