"""Progress of a run, and its result."""

from dataclasses import dataclass, field
from typing import Any

from imagen import limits
from imagen.errors import UserError, check_number
from imagen.jsonconfig import from_json
from imagen.train.meter import BUCKETS, Meter
from imagen.train.scaling import LossScale
from imagen.train.stopping import SIGNALLED


@dataclass(frozen=True)
class TrainResult:
    """Result of one call of `train`."""

    step: int
    images: int  # since step 0, over all calls
    finished: bool  # train.steps is reached
    reason: str  # why training ended

    @property
    def signalled(self) -> bool:
        """Whether a signal stopped training."""
        return self.reason.startswith(SIGNALLED)


@dataclass
class Progress:
    """All of a run's state that is not a tensor."""

    step: int = 0
    skipped_in_a_row: int = 0
    meter: Meter = field(default_factory=Meter)
    loss_scale: LossScale = field(default_factory=LossScale)

    @classmethod
    def from_json(cls, state: dict[str, Any], where: str) -> "Progress":
        """Read the progress in a checkpoint's `state.json`.

        Raises UserError, naming `where` and the field, if it is missing or out of range.
        """
        progress = from_json(cls, state.get("progress") if isinstance(state, dict) else None, where)
        for name, numbers in (("loss", progress.meter.bucket_loss), ("images", progress.meter.bucket_images)):
            if len(numbers) != BUCKETS:
                raise UserError(f"{where}: meter.bucket_{name} has {len(numbers)} numbers; it must have {BUCKETS}")
        for name, number in (("step", progress.step), ("loss_scale.steps", progress.loss_scale.steps)):
            check_number(f"{where}: {name}", number, least=0, most=limits.TRAIN["steps"]["most"])
        return progress
