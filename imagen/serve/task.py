"""One image in the engine: its request, its progress, and its callback."""

from collections.abc import Callable
from dataclasses import dataclass, field

from greenlet import greenlet
from PIL import Image

from imagen.cascade import Request
from imagen.serve.batching import Call
from imagen.stage.editing import steps_taken


@dataclass(frozen=True)
class Step:
    """Progress of an image after a sampler step."""

    stage: int  # index in the cascade
    step: int  # 1 .. steps
    steps: int
    done: int  # steps of all stages so far
    total: int  # steps of all stages
    preview: Image.Image | None


@dataclass(eq=False)
class ImageTask:
    """An image that the engine samples. `request` is for this image alone.

    report: called in the engine's thread with a Step after each sampler step, and at the end with the image or the
        exception.
    wants_preview: called with (done, total, last step of a stage); returns whether to decode a preview.
    """

    request: Request
    client: str
    report: Callable[["Step | Image.Image | Exception"], None]
    wants_preview: Callable[[int, int, bool], bool] = lambda done, total, stage_ends: False
    number: int = 0  # order of arrival
    cancelled: bool = False
    execution: greenlet | None = None  # while it is sampled
    call: Call | None = None  # the network evaluation that it waits for
    done: int = 0  # sampler steps so far
    stage_started: tuple[int, float] | None = None  # index of its stage, `time.perf_counter` at its start
    total: int = field(init=False)  # sampler steps of all stages

    def __post_init__(self) -> None:
        stages = zip(self.request.settings, self.request.strength, strict=True)
        self.total = sum(steps_taken(strength, settings.steps) for settings, strength in stages)

    @property
    def pixels(self) -> int:
        """Return the number of pixels of the largest stage's image."""
        return max(height * width for height, width in self.request.sizes)
