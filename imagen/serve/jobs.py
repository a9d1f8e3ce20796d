"""Requests on their way: what they are made of, where they stand, and what is kept of them.

All of it lives in the event loop's thread. Engines report from their own threads, through `call_soon_threadsafe`.
Nothing is written to disk: a killed server leaves no file behind, and a new one begins with none.
"""

import asyncio
import secrets
import sys
import time
import traceback
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

from PIL import Image

from imagen.errors import UserError
from imagen.serve.config import ServeConfig
from imagen.serve.engine import Engine
from imagen.serve.errors import INTERNAL
from imagen.serve.job import Busy, Job, Picture, Stopping
from imagen.serve.metrics import Metrics
from imagen.serve.pictures import encoded
from imagen.serve.requests import Prepared
from imagen.serve.work import Step, Work

PREVIEW_SECONDS = 0.1  # between previews of one picture


class Jobs:
    def __init__(self, engines: list[Engine], config: ServeConfig, metrics: Metrics):
        self.engines = engines
        self.config = config
        self.metrics = metrics
        self.draining = False
        self._jobs: OrderedDict[str, Job] = OrderedDict()  # oldest first
        self._pictures: dict[str, tuple[Job, Picture]] = {}
        self._kept = 0  # bytes
        self._given = 0
        self._files = ThreadPoolExecutor(2, "files")
        self._told = 0.0
        self._finishing: set[asyncio.Task[None]] = set()  # the loop itself holds tasks weakly

    # --- asking ---

    def submit(self, prepared: Prepared, client: str, kind: str, *, previews: bool = False, partials: int = 0) -> Job:
        """Accept a request. previews: as it goes on; partials: this many of each picture, evenly spread.

        Raises Busy or Stopping.
        """
        if self.draining:
            raise Stopping("the server is shutting down; ask again in a moment")
        engines = [engine for engine in self.engines if engine.failure is None]
        if not engines:
            raise Stopping("the server cannot draw any more and has to be started again; its log says why")
        waiting = sum(engine.load()[0] for engine in engines)
        if waiting + len(prepared.plans) > self.config.limits.queue:
            self.metrics.pictures.labels("refused").inc(len(prepared.plans))
            each = sum(engine.seconds for engine in engines) / len(engines) ** 2
            raise Busy(f"{waiting} pictures wait already; try again in a while", min(waiting * each / 2, 60))
        given = prepared.given_bytes
        if self._given and self._given + given > self.config.limits.given_bytes:
            raise Busy("the pictures of requests that wait fill the server's memory; try again in a while", 10)
        self._forget()
        if self.config.check_picture is not None:
            previews, partials = False, 0
        pictures = [
            Picture(number, plan.seeds[0], command)
            for number, (plan, command) in enumerate(zip(prepared.plans, prepared.commands, strict=True))
        ]
        job = Job(secrets.token_urlsafe(16), client, kind, prepared.format, pictures, partials, given)
        self._given += given
        loop = asyncio.get_running_loop()
        for picture, plan in zip(pictures, prepared.plans, strict=True):

            def report(event: Any, picture: Picture = picture) -> None:
                loop.call_soon_threadsafe(self._reported, job, picture, prepared, event)

            engine = min(engines, key=lambda engine: sum(engine.load()))
            work = Work(
                replace(plan, device=engine.device, precision=engine.precision),
                client,
                report,
                _shows(previews, partials),
            )
            picture.total = work.total
            job.works[picture] = (engine, work)
            engine.submit([work])
            self._pictures[picture.id] = (job, picture)
        self._jobs[job.id] = job
        late = f"it took longer than {self.config.timeout:g} seconds"
        job.deadline = loop.call_later(self.config.timeout, self.cancel, job, late, 504)
        return job

    def get(self, id: str, client: str | None = None) -> Job | None:
        """A job, if it is this client's (None: whoever asks)."""
        job = self._jobs.get(id)
        return None if job is None or (client is not None and job.client != client) else job

    def picture(self, id: str) -> tuple[Job, Picture] | None:
        return self._pictures.get(id)

    def cancel(self, job: Job, why: str | None = None, status: int = 410) -> None:
        """End what has not ended; with a reason it counts as failed, and is answered with `status`."""
        for picture in job.pictures:
            if not picture.ended:
                self._stop(job, picture)
                picture.state, picture.error = ("cancelled", None) if why is None else ("failed", why)
                picture.status = status
                self._ended(job, picture)

    def left(self, job: Job) -> None:
        """Nobody follows it any more: end what has not ended, and free what was only for those who look on."""
        self.cancel(job)
        for picture in job.pictures:
            picture.partials.clear()

    def position(self, job: Job) -> int:
        """How many pictures of others are begun before the next of this job; 0 if none waits."""
        places = []
        for engine in {engine for engine, _ in job.works.values()}:
            ahead = engine.ahead()
            places += [ahead[work] for other, work in job.works.values() if other is engine and work in ahead]
        return min(places, default=-1) + 1

    def unended(self) -> list[Job]:
        return [job for job in self._jobs.values() if not job.ended]

    def unfetched(self) -> list[Job]:
        return [job for job in self._jobs.values() if not job.fetched]

    def measure(self) -> None:
        """Bring the gauges up to date."""
        loads = [engine.load() for engine in self.engines]
        self.metrics.waiting.set(sum(waiting for waiting, _ in loads))
        self.metrics.active.set(sum(active for _, active in loads))
        self.metrics.kept.set(self._kept)
        texts = [engine.cascade.texts for engine in self.engines]
        self.metrics.texts.set(sum(len(known) for known in texts if known is not None))

    def close(self) -> None:
        for engine in self.engines:
            engine.stop()
        self._files.shutdown(wait=False, cancel_futures=True)

    # --- what engines report ---

    def _reported(self, job: Job, picture: Picture, prepared: Prepared, event: Any) -> None:
        if picture.ended:
            return
        if isinstance(event, Step):
            if picture.state == "queued":
                picture.state = "running"
                self._tell_queue()
            engine, _ = job.works[picture]
            picture.stage, picture.step, picture.steps = event.stage, event.step, event.steps
            picture.resolution = engine.cascade.stages[event.stage].config.resolution
            picture.done, picture.total = event.done, event.total
            if event.preview is not None:
                picture.preview = event.preview
                picture.shown += 1
                if job.partials:
                    picture.partials.append(event.preview)
            job.changed()
        elif isinstance(event, Exception):
            self._failed(job, picture, event)
        else:
            task = asyncio.ensure_future(self._finish(job, picture, prepared, event))
            self._finishing.add(task)
            task.add_done_callback(self._finishing.discard)

    async def _finish(self, job: Job, picture: Picture, prepared: Prepared, image: Image.Image) -> None:
        """Check and encode a picture, in a thread."""
        if picture.ended:  # cancelled since
            return
        engine, work = job.works[picture]

        def file() -> bytes:
            if self.config.check_picture is not None and (refusal := self.config.check_picture(image)):
                raise UserError(refusal)
            made = None
            if prepared.format == "png":
                made = {
                    **engine.cascade.metadata(work.plan, 0),
                    "conditions": engine.cascade.conditions(work.plan, 0),
                }
            return encoded(image, prepared.format, made, prepared.quality)

        try:
            data = await asyncio.get_running_loop().run_in_executor(self._files, file)
        except Exception as error:
            if not picture.ended:
                self._failed(job, picture, error)
            return
        if picture.ended:
            return
        picture.data, picture.size, picture.state = data, image.size, "done"
        self._kept += len(data)
        self._ended(job, picture)

    def _failed(self, job: Job, picture: Picture, error: Exception) -> None:
        ours = not isinstance(error, UserError)
        if ours:
            traceback.print_exception(error, file=sys.stderr)
        picture.state, picture.error = "failed", INTERNAL if ours else str(error)
        picture.status = 500 if ours else 422
        self._ended(job, picture)

    def _stop(self, job: Job, picture: Picture) -> None:
        engine, work = job.works[picture]
        engine.cancel([work])

    def _ended(self, job: Job, picture: Picture) -> None:
        picture.preview = None
        if picture.state != "done":
            picture.partials.clear()
        job.works.pop(picture, None)  # a plan holds pictures that were sent
        self.metrics.pictures.labels(picture.state).inc()
        if job.ended:
            self._given -= job.given
            if job.deadline is not None:
                job.deadline.cancel()
            self.metrics.job_seconds.labels(job.kind).observe(time.monotonic() - job.began)
        job.changed()
        self._tell_queue()
        self._forget()

    def _tell_queue(self) -> None:
        """Those who wait have moved up."""
        now = time.monotonic()
        if now - self._told > 0.2:
            self._told = now
            for job in self._jobs.values():
                if job.state == "queued":
                    job.changed()

    def _forget(self) -> None:
        """Drop the oldest jobs that have ended, as far as the limits ask for it."""
        limits, now = self.config.limits, time.monotonic()
        for job in list(self._jobs.values()):
            old = now - job.began > limits.kept_seconds + self.config.timeout
            if not (old or self._kept > limits.kept_bytes or len(self._jobs) > limits.kept_jobs):
                break
            if job.ended and (old or not job.watchers):
                self.drop(job)

    def drop(self, job: Job) -> None:
        """Forget a job and its pictures."""
        self.cancel(job)
        self._jobs.pop(job.id, None)
        for picture in job.pictures:
            self._pictures.pop(picture.id, None)
            self._kept -= len(picture.data or b"")
            picture.data = None


def _shows(previews: bool, partials: int) -> Any:
    """Whether to show a picture after `done` of `total` steps: at the ends of stages and every so often, or at
    `partials` places that part the steps evenly."""
    last = 0.0

    def often(done: int, total: int, ends: bool) -> bool:
        nonlocal last
        now = time.monotonic()
        if ends or now - last > PREVIEW_SECONDS:
            last = now
            return True
        return False

    def evenly(done: int, total: int, ends: bool) -> bool:
        return any(done == max(round(total * (i + 1) / (partials + 1)), 1) for i in range(partials))

    if partials:
        return evenly
    return often if previews else lambda done, total, ends: False
