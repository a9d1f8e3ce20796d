"""What a run reports: metrics.jsonl, TensorBoard and lines on the console, all from the same numbers."""

import importlib.util
import json
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from imagen.files import cannot_write
from imagen.train.console import Console, Row
from imagen.train.rundir import truncate_metrics
from imagen.train.step import StepResult

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

BUCKETS = 4  # loss by quarter of t: loss_t0 is almost clean, loss_t3 almost noise


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
        if not result.applied:
            self.nonfinite += result.problem is not None
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


class RunLog:
    """RUN/metrics.jsonl (strict JSON, one object per logged step), lines on `console`, and, where the package is
    installed, RUN/tensorboard."""

    def __init__(self, run: Path, step: int, console: Console):
        """step: the one to go on from; what was logged after it is dropped."""
        self._path = run / "metrics.jsonl"
        truncate_metrics(self._path, step)
        try:
            self._file = open(self._path, "a", buffering=1)  # noqa: SIM115  # close() does
        except OSError as error:
            raise cannot_write(self._path, error) from None
        self._board = _board(run / "tensorboard", step)
        self._console = console

    def write(self, step: int, row: Row) -> None:
        row = {"step": step, **{name: _finite(value) for name, value in row.items()}}
        try:
            self._file.write(json.dumps(row, allow_nan=False) + "\n")
        except OSError as error:
            raise cannot_write(self._path, error) from error
        with self._board_errors():
            for name, value in row.items():
                if self._board is not None and value is not None and name != "step":
                    self._board.add_scalar(name, value, step)
        self._console.row(row)

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
            if self._board is not None:
                self._board.add_image(name, picture_CHW, step)

    def close(self) -> None:
        with self._board_errors():
            self._file.close()
            if self._board is not None:
                self._board.close()

    @contextmanager
    def _board_errors(self) -> Iterator[None]:
        """TensorBoard writes in a thread of its own, and raises what happened there at a later call."""
        try:
            yield
        except OSError as error:
            raise cannot_write(self._path.with_name("tensorboard"), error) from error


def _finite(value: float | int | None) -> float | int | None:
    """Strict JSON has no NaN."""
    return value if value is None or math.isfinite(value) else None


def _board(folder: Path, step: int) -> "SummaryWriter | None":
    """What writes to TensorBoard from `step` on; None where it is not installed."""
    if importlib.util.find_spec("tensorboard") is None:
        return None
    from torch.utils.tensorboard import SummaryWriter  # heavy, and nothing else here needs it

    return SummaryWriter(str(folder), purge_step=step + 1)
