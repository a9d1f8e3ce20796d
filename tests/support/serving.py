"""A server in this process, over a cascade of random weights that draws in milliseconds."""

import asyncio
import contextlib
import dataclasses
import io
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import httpx
import numpy as np
import torch
from cascades import cascade, stage
from PIL import Image

from imagen.cascade import Cascade
from imagen.serve.config import Limits, ServeConfig
from imagen.serve.engine import Engine
from imagen.serve.metrics import Metrics
from imagen.serve.running import Server, listen
from imagen.serve.task import ImageTask, Step

JOB: dict[str, Any] = {"device": "cpu", "precision": "fp32", "batch_size": 1}
LIMITS = Limits(n=4, steps=60, prompt=100, side=256, pixels=128 * 128, body=200_000, input_pixels=300 * 300)


def tiny() -> Cascade:
    """16 -> 32 pixels, text of one token a word."""
    return cascade(stage(16), stage(32, 16))


def engine(model: Cascade | None = None, limits: Limits = LIMITS) -> Engine:
    made = Engine(model or tiny(), limits, torch.device("cpu"), Metrics(), "fp32")
    made.start()
    made.ready.wait(60)
    assert made.failure is None, made.failure
    return made


class Running:
    """A server at `url`; `server.app.state.service` is its inside."""

    def __init__(self, server: Server, url: str):
        self.server = server
        self.url = url

    @property
    def service(self) -> Any:
        return self.server.app.state.service

    def client(self, **options: Any) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=60, trust_env=False, **options)

    def hold(self) -> "contextlib.AbstractContextManager[None]":
        """No picture goes on meanwhile."""
        return _held(self.service.engines[0], 60)

    def slow(self) -> "contextlib.AbstractContextManager[None]":
        """A step takes long enough to be seen."""
        return _held(self.service.engines[0], 0.1)


@contextlib.contextmanager
def _held(engine: Engine, seconds: float) -> Iterator[None]:
    gate, turn = threading.Event(), engine.run_batch

    def wait() -> None:
        gate.wait(seconds)
        turn()

    engine.run_batch = wait  # type: ignore[method-assign]
    try:
        yield
    finally:
        engine.run_batch = turn  # type: ignore[method-assign]
        gate.set()


@contextlib.contextmanager
def serving(model: Cascade | None = None, *, engines: int = 1, **fields: Any) -> Iterator[Running]:
    config = ServeConfig(**{"limits": LIMITS, "drain": 10.0, "name": "tiny", **fields})
    made = [engine(model, config.limits) for _ in range(engines)]
    server = Server(config, made, made[0].metrics)
    listening = listen("127.0.0.1", 0)
    thread = threading.Thread(target=asyncio.run, args=(server.serve(sockets=[listening]),), daemon=True)
    thread.start()
    until(lambda: server.started)
    try:
        yield Running(server, f"http://127.0.0.1:{listening.getsockname()[1]}")
    finally:
        server.should_exit = True
        thread.join(5)
        server.force_exit = True
        thread.join(20)
        assert not thread.is_alive()
        for one in made:
            one.stop()


def until(true: Any, seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it never came true"
        time.sleep(0.005)


def noisy(side: int = 32, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8))


def png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def opened(data: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(data))
    image.load()
    return image


def limits(**fields: Any) -> Limits:
    return dataclasses.replace(LIMITS, **fields)


class Recorded:
    """An image task that records its reports."""

    def __init__(self, engine: Engine, prompt: str = "cat", client: str = "a", *, shows: bool = False, **request: Any):
        self.ended = threading.Event()
        self.steps: list[Step] = []
        self.result: Any = None
        task_request = engine.cascade.request([prompt], **JOB, **request)
        self.task = ImageTask(task_request, client, self.record, lambda done, total, stage_ends: shows)

    def record(self, event: Any) -> None:
        if isinstance(event, Step):
            self.steps.append(event)
        else:
            self.result = event
            self.ended.set()

    def wait(self) -> Any:
        assert self.ended.wait(60)
        return self.result


class Watching:
    """Wraps a stage's batcher and records the number of images per call."""

    def __init__(self, engine: Engine, after: Callable[[int], Any] = lambda calls: None, stage: int = 0):
        self.sizes: list[int] = []
        self.after = after
        self.batcher = engine.batchers[stage]
        engine.batchers[stage] = self  # type: ignore[call-overload]

    def __call__(self, calls: Sequence[Any]) -> Any:
        self.sizes.append(len(calls))
        self.after(len(self.sizes))
        return self.batcher(calls)

    def clear(self) -> None:
        self.batcher.clear()
