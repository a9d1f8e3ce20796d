"""Start a server in this process, with a cascade of random weights that samples in milliseconds."""

import asyncio
import contextlib
import dataclasses
import io
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import torch
from cascades import cascade, stage
from lora import lora_file
from PIL import Image

from imagen.cascade import Cascade
from imagen.lora import fit, read_adapter
from imagen.serve.config import Limits, ServeConfig
from imagen.serve.engine import Engine
from imagen.serve.metrics import Metrics
from imagen.serve.running import Server, listen
from imagen.serve.task import ImageTask, Step
from imagen.stage.sampling import FAST
from imagen.text.vocabulary import Vocabulary

JOB: dict[str, Any] = {"device": "cpu", "precision": "fp32", "batch_size": 1}
VOCABULARY = Vocabulary(frozenset({"cat", "dog", "two", "yo-yo"}), ("cat", "dog", "yo-yo", "hot dog"))
LIMITS = Limits(n=4, steps=60, prompt=100, side=256, pixels=128 * 128, body=200_000, input_pixels=300 * 300)


def tiny_cascade() -> Cascade:
    """Return a cascade of 16 and 32 pixels with one text token per word."""
    return cascade(stage(16), stage(32, 16))


def fast_cascade(folder: Path) -> Cascade:
    """Return a `tiny_cascade` with fast settings and an adapter for 16 pixels, and a vocabulary."""
    model = tiny_cascade()
    base = model.stages[0]
    base.adapters[FAST] = fit(read_adapter(lora_file(folder / "fast.safetensors", model)), base.unet)
    base.fast = dataclasses.replace(base.config.sampling, sampler="ddim", steps=2, guidance=1.0)
    base.info = {**base.info, "vocabulary": VOCABULARY.to_json()}
    return model


def start_engine(model: Cascade | None = None, limits: Limits = LIMITS) -> Engine:
    """Start an engine and wait until it is ready."""
    engine = Engine(model or tiny_cascade(), limits, torch.device("cpu"), Metrics(), "fp32")
    engine.start()
    engine.ready.wait(60)
    assert engine.failure is None, engine.failure
    return engine


class RunningServer:
    """A server that listens at `url`."""

    def __init__(self, server: Server, url: str):
        self.server = server
        self.url = url

    @property
    def service(self) -> Any:
        return self.server.app.state.service

    def client(self, **options: Any) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=60, trust_env=False, **options)

    def pause_engine(self) -> "contextlib.AbstractContextManager[None]":
        """Stop all sampling inside the block."""
        return _delayed_batches(self.service.engines[0], 60)

    def slow_engine(self) -> "contextlib.AbstractContextManager[None]":
        """Make each step take 0.1 s inside the block, long enough for a client to observe."""
        return _delayed_batches(self.service.engines[0], 0.1)


@contextlib.contextmanager
def _delayed_batches(engine: Engine, seconds: float) -> Iterator[None]:
    """Delay each batch of the engine by `seconds`, or until the block ends."""
    block_ended, run_batch = threading.Event(), engine.run_batch

    def delayed() -> None:
        block_ended.wait(seconds)
        run_batch()

    engine.run_batch = delayed  # type: ignore[method-assign]
    try:
        yield
    finally:
        engine.run_batch = run_batch  # type: ignore[method-assign]
        block_ended.set()


@contextlib.contextmanager
def serving(model: Cascade | None = None, *, engines: int = 1, **fields: Any) -> Iterator[RunningServer]:
    """Serve `model` on a free port inside the block. fields: of ServeConfig."""
    config = ServeConfig(**{"limits": LIMITS, "drain": 10.0, "name": "tiny", **fields})
    started = [start_engine(model, config.limits) for _ in range(engines)]
    server = Server(config, started, started[0].metrics)
    listening = listen("127.0.0.1", 0)
    thread = threading.Thread(target=asyncio.run, args=(server.serve(sockets=[listening]),), daemon=True)
    thread.start()
    wait_until(lambda: server.started)
    try:
        yield RunningServer(server, f"http://127.0.0.1:{listening.getsockname()[1]}")
    finally:
        server.should_exit = True
        thread.join(5)
        server.force_exit = True
        thread.join(20)
        assert not thread.is_alive()
        for engine in started:
            engine.stop()


def wait_until(condition: Any, seconds: float = 30.0) -> None:
    """Wait until `condition()` is true; fail after `seconds`."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"the condition did not become true within {seconds} s"
        time.sleep(0.005)


def noise_image(side: int = 32, seed: int = 0) -> Image.Image:
    """Return a square image of random pixels."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8))


def encode_png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def decode_image(data: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(data))
    image.load()
    return image


def change_limits(**fields: Any) -> Limits:
    """Return LIMITS with other values of some fields."""
    return dataclasses.replace(LIMITS, **fields)


class RecordedTask:
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


class BatcherSpy:
    """Wraps a stage's batcher, records the number of images per call, and calls `after(number of calls)`."""

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
