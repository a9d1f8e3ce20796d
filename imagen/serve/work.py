"""A picture as the engine sees it: its plan, where it stands, and whom to tell."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

from greenlet import greenlet
from PIL import Image

from imagen.cascade import Plan
from imagen.serve.gather import Call


@dataclass(frozen=True)
class Step:
    """A picture went on."""

    stage: int  # index in the cascade
    step: int  # 1 .. steps
    steps: int
    done: int  # steps of all stages
    total: int
    preview: Image.Image | None


@dataclass(eq=False)
class Work:
    """A picture to be made. `plan` is of this one alone.

    report: called in the engine's thread with a Step, at the end with the picture, or with what went wrong.
    shows: whether a preview is wanted after `done` of `total` steps; the last of each stage is asked with `ends` True.
    """

    plan: Plan
    client: str
    report: Callable[["Step | Image.Image | Exception"], None]
    shows: Callable[[int, int, bool], bool] = lambda done, total, ends: False
    number: int = 0  # of arrival
    cancelled: bool = False
    started: bool = False
    run: greenlet | None = None
    call: Call | None = None
    done: int = 0  # steps
    at: tuple[int, float] | None = None  # the stage, and when it began
    total: int = field(init=False)

    def __post_init__(self) -> None:
        levels = zip(self.plan.settings, self.plan.strength, strict=True)
        self.total = sum(
            math.ceil(strength * settings.steps - 1e-9) for settings, strength in levels
        )  # as `Edit.levels`

    @property
    def pixels(self) -> int:
        return max(height * width for height, width in self.plan.sizes)
