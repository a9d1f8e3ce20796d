"""The server process: engines, uvicorn, and orderly shutdown."""

import asyncio
import contextlib
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import torch
import uvicorn

from imagen.cascade import Cascade
from imagen.errors import UserError
from imagen.lora import adapter_name
from imagen.precision import Precision, autocast_dtype, precision_name
from imagen.serve.app import create_app
from imagen.serve.config import Limits, ServeConfig
from imagen.serve.connection import Connection
from imagen.serve.engine import Engine
from imagen.serve.jobs import Jobs
from imagen.serve.metrics import Metrics

MAX_HEAD_BYTES = 2**14  # of the request line and headers
STOPPED = "the server shut down before the request was finished; try again in a moment"
COLLECT_SECONDS = 5.0  # after draining, for clients to collect the state of their jobs


def serve(
    cascade: str | Path,
    config: ServeConfig,
    *,
    devices: Sequence[str],
    precision: Precision = "auto",
    int8_text: bool = False,
    lora: Sequence[str | Path] = (),
) -> None:
    """Serve a cascade until SIGTERM or Ctrl-C. Raises UserError if it cannot start."""
    listening = listen(config.host, config.port)
    metrics = Metrics()
    engines = start_engines(
        cascade, config.limits, metrics, devices=devices, precision=precision, int8_text=int8_text, lora=lora
    )
    server = Server(config, engines, metrics)
    shown = f"[{config.host}]" if ":" in config.host else config.host
    print(f"serving {cascade} at http://{shown}:{listening.getsockname()[1]}/ (Ctrl-C stops)", flush=True)
    server.run(sockets=[listening])


def start_engines(
    cascade: str | Path,
    limits: Limits,
    metrics: Metrics,
    *,
    devices: Sequence[str],
    precision: Precision = "auto",
    int8_text: bool = False,
    lora: Sequence[str | Path] = (),
) -> list[Engine]:
    """Start one engine per device, each with its own copy of the cascade, and wait until all are warmed up.

    precision: "auto" is resolved for each device.

    Raises the exception of an engine that fails to start.
    """
    engines = []
    for device in devices:
        resolved = precision_name(autocast_dtype(device, precision))
        loaded = Cascade.load(cascade, precision=resolved, int8_text=int8_text)
        for path in lora:
            loaded.load_lora(path, name=loaded.unused_name(adapter_name(path)))
        engines.append(Engine(loaded, limits, torch.device(device), metrics, resolved))
        engines[-1].start()
    for engine in engines:
        engine.ready.wait()
        if engine.failure is not None:
            raise engine.failure
    return engines


class Server(uvicorn.Server):
    """Uvicorn with a graceful shutdown.

    After SIGTERM or Ctrl-C, new requests and /readyz get 503. Accepted requests have `drain` seconds to finish; then
    the rest get an error response. A second signal ends the process at once, with exit code 130.
    """

    def __init__(self, config: ServeConfig, engines: list[Engine], metrics: Metrics):
        limits = config.limits
        self.app = create_app(engines, config, metrics)
        self.drain = config.drain
        times = {"head_seconds": limits.header_seconds, "send_seconds": limits.send_seconds}
        protocol = type("BoundConnection", (Connection,), times)
        super().__init__(
            uvicorn.Config(
                self.app,
                http=protocol,
                ws="none",
                lifespan="on",
                log_level="warning",
                access_log=False,
                server_header=False,
                proxy_headers=bool(config.proxies),
                forwarded_allow_ips=list(config.proxies),
                limit_concurrency=limits.connections,
                h11_max_incomplete_event_size=MAX_HEAD_BYTES,
                timeout_keep_alive=15,
                timeout_graceful_shutdown=10,
            )
        )
        self._draining: asyncio.Task[None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self._draining is None and self._loop is not None:
            print("stopping: finishing accepted requests", file=sys.stderr, flush=True)
            self._loop.call_soon_threadsafe(self._begin_to_stop)
        else:
            sys.stderr.flush()
            os._exit(130)  # threads of engines are still computing, which an orderly exit would have to wait for

    @contextlib.contextmanager
    def capture_signals(self) -> Any:
        """Handle signals like uvicorn, but do not raise the signal again after the shutdown."""
        if threading.current_thread() is not threading.main_thread():  # in tests
            yield
            return
        before = {sig: signal.signal(sig, self.handle_exit) for sig in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for sig, handler in before.items():
                signal.signal(sig, handler)

    def _begin_to_stop(self) -> None:
        if self._draining is None:
            self._draining = asyncio.ensure_future(self._stop())

    async def _stop(self) -> None:
        jobs: Jobs = self.app.state.service.jobs
        jobs.draining = True
        end = time.monotonic() + self.drain
        while jobs.unfinished() and time.monotonic() < end:
            await asyncio.sleep(0.05)
        for job in jobs.unfinished():
            jobs.cancel(job, STOPPED, 503)
        end = time.monotonic() + COLLECT_SECONDS
        while jobs.uncollected() and time.monotonic() < end:
            await asyncio.sleep(0.05)
        self.should_exit = True


def listen(host: str, port: int) -> socket.socket:
    """Open the listening socket; called before the cascade is loaded, so that a port in use is reported at once."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
        listening.listen(256)
    except (OSError, OverflowError) as error:
        listening.close()
        cause = getattr(error, "strerror", None) or error
        raise UserError(f"cannot listen on {host}:{port}: {cause}; choose another --port or --host") from None
    return listening
