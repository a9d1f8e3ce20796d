"""Mean loss and gradient norm between two rows of metrics."""

import math
from dataclasses import dataclass, field

from imagen.train.step import StepResult

Row = dict[str, float | int | None]  # one row of metrics.jsonl, without its step
BUCKETS = 4  # the loss by quarter of t: loss_t0 at little noise, loss_t3 at almost pure noise


@dataclass
class Meter:
    """Sums since the last row. Checkpoints store them, so a resumed run logs the same means."""

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
        """Add the sums of one step; a skipped step only increases the count of skipped steps."""
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
        """Return the means; None if every step since the last row was skipped."""
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
