"""The state that all routes share: cascade, jobs and access control."""

import asyncio
from collections.abc import Callable
from typing import Any

from fastapi import Request

from imagen.diffusion.samplers import sampler_names
from imagen.serve.access import Access
from imagen.serve.config import ServeConfig
from imagen.serve.engine import Engine
from imagen.serve.hints import Hints
from imagen.serve.job import Busy, Job, Stopping
from imagen.serve.jobs import Jobs
from imagen.serve.metrics import Metrics
from imagen.serve.requests import ImageRequest, InputImages, PreparedRequest, prepare
from imagen.stage.config import SamplingConfig
from imagen.stage.sampling import FAST
from imagen.version import __version__

DECODING = 4  # requests whose images are decoded at the same time, which bounds the memory


class Service:
    """The state of the server that its routes use."""

    def __init__(self, engines: list[Engine], config: ServeConfig, metrics: Metrics, access: Access):
        self.engines = engines
        self.config = config
        self.metrics = metrics
        self.cascade = engines[0].cascade
        self.access = access
        self.jobs = Jobs(engines, config, metrics)
        self.hints = Hints(self.cascade, engines[0].device)
        self._decoding = asyncio.Semaphore(DECODING)

    def client(self, request: Request) -> str:
        """Return the client's name: its key's holder, or its address. Raises AccessDenied."""
        return self.access.client(request)

    async def prepare(self, fields: ImageRequest, decode: Callable[[], InputImages]) -> PreparedRequest:
        """Check a request, in a thread. decode: returns the request's images. Raises UserError."""
        device = self.engines[0].device

        def work() -> PreparedRequest:
            return prepare(fields, decode(), self.cascade, self.config, device)

        async with self._decoding:
            return await asyncio.to_thread(work)

    def submit(
        self, prepared: PreparedRequest, client: str, kind: str, *, previews: bool = False, partials: int = 0
    ) -> Job:
        """Queue a request and charge its images to the client's rate; see `Jobs.submit`.

        Raises AccessDenied, Busy or Stopping.
        """
        self.access.charge(client, len(prepared.requests))
        try:
            return self.jobs.submit(prepared, client, kind, previews=previews, partials=partials)
        except (Busy, Stopping):
            self.access.refund(client, len(prepared.requests))
            raise

    def close(self) -> None:
        """Stop the engines and all other threads."""
        self.hints.close()
        self.jobs.close()

    @property
    def healthy(self) -> bool:
        """Return whether every engine can sample."""
        return all(engine.failure is None for engine in self.engines)

    @property
    def ready(self) -> bool:
        """Return whether every engine is warmed up."""
        return self.healthy and all(engine.ready.is_set() for engine in self.engines)

    def about(self) -> dict[str, Any]:
        """Return the information that a page needs: stages with defaults, samplers, LoRA and limits."""
        limits = self.config.limits
        return {
            "version": __version__,
            "model": self.config.name,
            "text": self.cascade.text is not None,
            "stages": [
                {
                    "resolution": stage.config.resolution,
                    "low_resolution": stage.config.low_resolution,
                    **_settings(stage.config.sampling),
                    "fast": None if stage.fast is None else _settings(stage.fast),
                }
                for stage in self.cascade.stages
            ],
            "samplers": list(sampler_names()),
            "lora": [name for name in self.cascade.adapters if name != FAST],
            "limits": {
                "n": limits.n,
                "steps": limits.steps,
                "prompt": limits.prompt,
                "body": limits.body,
                "pixels": limits.pixels,
            },
            "keys": bool(self.config.keys),
        }


def _settings(sampling: SamplingConfig) -> dict[str, Any]:
    return {"steps": sampling.steps, "guidance": sampling.guidance, "sampler": sampling.sampler}
