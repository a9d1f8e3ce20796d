"""What all routes share: the cascade, the jobs, who may ask."""

import asyncio
from collections.abc import Callable
from typing import Any

from fastapi import Request

from imagen.serve.access import Access
from imagen.serve.config import ServeConfig
from imagen.serve.engine import Engine
from imagen.serve.job import Busy, Job, Stopping
from imagen.serve.jobs import Jobs
from imagen.serve.metrics import Metrics
from imagen.serve.requests import Asked, Given, Prepared, prepare
from imagen.version import __version__

DECODING = 4  # requests whose pictures are decoded at the same time: their memory is bounded


class Service:
    def __init__(self, engines: list[Engine], config: ServeConfig, metrics: Metrics, access: Access):
        self.engines = engines
        self.config = config
        self.metrics = metrics
        self.cascade = engines[0].cascade
        self.access = access
        self.jobs = Jobs(engines, config, metrics)
        self._decoding = asyncio.Semaphore(DECODING)

    def client(self, request: Request) -> str:
        return self.access.client(request)

    async def prepared(self, asked: Asked, given: Callable[[], Given]) -> Prepared:
        """given: decodes the request's pictures; it runs in a thread. Raises UserError."""
        device = self.engines[0].device

        def work() -> Prepared:
            return prepare(asked, given(), self.cascade, self.config, device)

        async with self._decoding:
            return await asyncio.to_thread(work)

    def submit(self, prepared: Prepared, client: str, kind: str, *, previews: bool = False, partials: int = 0) -> Job:
        """Raises Denied, Busy or Stopping."""
        self.access.spend(client, len(prepared.plans))
        try:
            return self.jobs.submit(prepared, client, kind, previews=previews, partials=partials)
        except (Busy, Stopping):
            self.access.give_back(client, len(prepared.plans))
            raise

    @property
    def healthy(self) -> bool:
        return all(engine.failure is None for engine in self.engines)

    @property
    def ready(self) -> bool:
        return self.healthy and all(engine.ready.is_set() for engine in self.engines)

    def about(self) -> dict[str, Any]:
        limits = self.config.limits
        return {
            "version": __version__,
            "model": self.config.name,
            "text": self.cascade.text is not None,
            "stages": [
                {
                    "resolution": stage.config.resolution,
                    "low_resolution": stage.config.low_resolution,
                    "steps": stage.config.sampling.steps,
                    "guidance": stage.config.sampling.guidance,
                    "sampler": stage.config.sampling.sampler,
                }
                for stage in self.cascade.stages
            ],
            "lora": list(self.cascade.adapters),
            "limits": {
                "n": limits.n,
                "steps": limits.steps,
                "prompt": limits.prompt,
                "body": limits.body,
                "pixels": limits.pixels,
            },
            "keys": bool(self.config.keys),
        }
