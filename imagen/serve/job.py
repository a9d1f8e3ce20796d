"""A request on its way, and each of its pictures."""

import asyncio
import math
import secrets
import time
from dataclasses import dataclass, field
from typing import Any, Literal

from PIL import Image

from imagen.serve.engine import Engine
from imagen.serve.work import Work

State = Literal["queued", "running", "done", "failed", "cancelled"]
ENDED = ("done", "failed", "cancelled")


class Busy(Exception):
    """The queue is full; try again after so many seconds."""

    def __init__(self, message: str, retry_after: float):
        super().__init__(message)
        self.retry_after = max(math.ceil(retry_after), 1)


class Stopping(Exception):
    """The server takes nothing new."""


@dataclass(eq=False)
class Picture:
    """One of a job's. `id` cannot be guessed: who knows it may see the picture."""

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
    shown: int = 0  # previews so far
    preview: Image.Image | None = None  # the newest
    partials: list[Image.Image] = field(default_factory=list)  # as many as were asked for
    size: tuple[int, int] = (0, 0)  # width, height
    data: bytes | None = None
    error: str | None = None
    status: int = 200  # of an HTTP answer

    @property
    def ended(self) -> bool:
        return self.state in ENDED


@dataclass(eq=False)
class Job:
    id: str
    client: str
    kind: str
    format: str
    pictures: list[Picture]
    partials: int = 0  # previews of each picture that were asked for; all are kept until somebody has taken them
    given: int = 0  # bytes of the pictures that it brought along
    works: dict[Picture, tuple[Engine, Work]] = field(default_factory=dict)  # of those that have not ended
    deadline: asyncio.TimerHandle | None = None
    created: float = field(default_factory=time.time)
    began: float = field(default_factory=time.monotonic)
    fetched: bool = False  # somebody has seen its end
    watchers: set[asyncio.Event] = field(default_factory=set)

    @property
    def state(self) -> State:
        states = {picture.state for picture in self.pictures}
        if not all(picture.ended for picture in self.pictures):
            return "queued" if states == {"queued"} else "running"
        return next(state for state in ("cancelled", "failed", "done") if state in states)

    @property
    def ended(self) -> bool:
        return all(picture.ended for picture in self.pictures)

    @property
    def error(self) -> str | None:
        return next((picture.error for picture in self.pictures if picture.error), None)

    def changed(self) -> None:
        for event in self.watchers:
            event.set()
