"""The state of a job and of its images."""

import asyncio
import math
import secrets
import time
from dataclasses import dataclass, field
from typing import Any, Literal

from PIL import Image

from imagen.serve.engine import Engine
from imagen.serve.task import ImageTask

State = Literal["queued", "running", "done", "failed", "cancelled"]
ENDED = ("done", "failed", "cancelled")


class Busy(Exception):
    """Raised when the queue or the memory is full.

    retry_after: whole seconds, 1 or more, after which a client should try again.
    """

    def __init__(self, message: str, retry_after: float):
        super().__init__(message)
        self.retry_after = max(math.ceil(retry_after), 1)


class Stopping(Exception):
    """Raised for requests that arrive after the server has begun to stop."""


@dataclass(eq=False)
class Picture:
    """The state of one image of a job. `id` is unguessable: it alone gives access to the image."""

    number: int
    seed: Any
    command: str
    id: str = field(default_factory=lambda: secrets.token_urlsafe(16))
    state: State = "queued"
    stage: int = 0
    resolution: int = 0
    step: int = 0
    steps: int = 0
    done: int = 0
    total: int = 1
    previews: int = 0  # number of previews so far
    preview: Image.Image | None = None  # the newest
    partials: list[Image.Image] = field(default_factory=list)  # previews that the client has requested by number
    size: tuple[int, int] = (0, 0)  # width, height
    data: bytes | None = None
    error: str | None = None
    status: int = 200  # HTTP status of its response

    @property
    def ended(self) -> bool:
        return self.state in ENDED


@dataclass(eq=False)
class Job:
    """A request that the server has accepted."""

    id: str
    client: str
    kind: str
    format: str
    pictures: list[Picture]
    partials: int = 0  # requested number of previews per image; all are stored until they are sent
    input_bytes: int = 0  # of its decoded input images
    tasks: dict[Picture, tuple[Engine, ImageTask]] = field(default_factory=dict)  # of images that have not ended
    deadline: asyncio.TimerHandle | None = None
    created: float = field(default_factory=time.time)
    began: float = field(default_factory=time.monotonic)
    warning: str | None = None  # of words in its prompt that training never showed
    collected: bool = False  # a client has received its final state
    watchers: set[asyncio.Event] = field(default_factory=set)

    @property
    def state(self) -> State:
        """Return the state of the whole job: cancelled or failed if any image is."""
        states = {picture.state for picture in self.pictures}
        if not all(picture.ended for picture in self.pictures):
            return "queued" if states == {"queued"} else "running"
        return next(state for state in ("cancelled", "failed", "done") if state in states)

    @property
    def ended(self) -> bool:
        return all(picture.ended for picture in self.pictures)

    @property
    def error(self) -> str | None:
        """Return the first error of an image."""
        return next((picture.error for picture in self.pictures if picture.error), None)

    def changed(self) -> None:
        """Wake all clients that follow the job."""
        for event in self.watchers:
            event.set()
