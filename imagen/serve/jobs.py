"""All jobs of a server, and the memory of finished images.

Everything here runs in the event loop's thread. Engines report from their own threads, through `call_soon_threadsafe`.
Nothing is written to disk: a server that is killed leaves no files, and a new one starts without jobs.
"""

import asyncio
import secrets
import sys
import time
import traceback
from collections import OrderedDict
from collections.abc import Callable
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
from imagen.serve.requests import PreparedRequest
from imagen.serve.task import ImageTask, Step

PREVIEW_SECONDS = 0.1  # at least, between previews of one image
QUEUE_SECONDS = 0.2  # at least, between updates of queue positions


class Jobs:
    """The jobs of a server: accepts, follows, cancels and deletes them."""

    def __init__(self, engines: list[Engine], config: ServeConfig, metrics: Metrics):
        self.engines = engines
        self.config = config
        self.metrics = metrics
        self.draining = False
        self.jobs: OrderedDict[str, Job] = OrderedDict()  # oldest first
        self.pictures: dict[str, tuple[Job, Picture]] = {}
        self.stored_bytes = 0  # of finished images
        self._input_bytes = 0  # of unfinished jobs
        self._files = ThreadPoolExecutor(2, "files")
        self._queue_updated = 0.0  # `time.monotonic`
        self._finishing: set[asyncio.Task[None]] = set()  # the loop itself has only weak references to tasks

    # --- requests ---

    def submit(
        self, prepared: PreparedRequest, client: str, kind: str, *, previews: bool = False, partials: int = 0
    ) -> Job:
        """Queue a request.

        previews: store the newest preview of each image. partials: store this number of previews per image, evenly
        spaced over the steps. Raises Busy or Stopping.
        """
        if self.draining:
            raise Stopping("the server is shutting down; try again in a moment")
        engines = [engine for engine in self.engines if engine.failure is None]
        if not engines:
            raise Stopping("the server can no longer sample and has to be restarted; see its log")
        waiting = sum(engine.load()[0] for engine in engines)
        if waiting + len(prepared.requests) > self.config.limits.queue:
            self.metrics.pictures.labels("refused").inc(len(prepared.requests))
            each = sum(engine.seconds for engine in engines) / len(engines) ** 2
            raise Busy(f"{waiting} images are already in the queue; try again later", min(waiting * each / 2, 60))
        input_bytes = prepared.input_bytes
        if self._input_bytes and self._input_bytes + input_bytes > self.config.limits.input_bytes:
            raise Busy("the uploaded images of queued requests fill the server's memory; try again later", 10)
        self._delete_old()
        if self.config.check_picture is not None:
            previews, partials = False, 0
        pictures = [
            Picture(number, request.seeds[0], command)
            for number, (request, command) in enumerate(zip(prepared.requests, prepared.commands, strict=True))
        ]
        job = Job(secrets.token_urlsafe(16), client, kind, prepared.format, pictures, partials, input_bytes)
        self._input_bytes += input_bytes
        loop = asyncio.get_running_loop()
        for picture, request in zip(pictures, prepared.requests, strict=True):

            def report(event: Any, picture: Picture = picture) -> None:
                loop.call_soon_threadsafe(self._on_report, job, picture, prepared, event)

            engine = min(engines, key=lambda engine: sum(engine.load()))
            task = ImageTask(
                replace(request, device=engine.device, precision=engine.precision),
                client,
                report,
                _preview_rule(previews, partials),
            )
            picture.total = task.total
            job.tasks[picture] = (engine, task)
            engine.submit([task])
            self.pictures[picture.id] = (job, picture)
        self.jobs[job.id] = job
        late = f"the request took longer than {self.config.timeout:g} seconds"
        job.deadline = loop.call_later(self.config.timeout, self.cancel, job, late, 504)
        return job

    def get(self, id: str, client: str | None = None) -> Job | None:
        """Return a job; None if it does not exist, or belongs to another client than `client` (None: any)."""
        job = self.jobs.get(id)
        return None if job is None or (client is not None and job.client != client) else job

    def picture(self, id: str) -> tuple[Job, Picture] | None:
        """Return an image and its job by the image's id."""
        return self.pictures.get(id)

    def cancel(self, job: Job, reason: str | None = None, status: int = 410) -> None:
        """Cancel a job's unfinished images. With a reason they count as failed, and their HTTP status is `status`."""
        for picture in job.pictures:
            if not picture.ended:
                self._stop(job, picture)
                picture.state, picture.error = ("cancelled", None) if reason is None else ("failed", reason)
                picture.status = status
                self._on_end(job, picture)

    def abandon(self, job: Job) -> None:
        """Cancel a job after its client has left the stream, and free its stored previews."""
        self.cancel(job)
        for picture in job.pictures:
            picture.partials.clear()

    def position(self, job: Job) -> int:
        """Return 1 + the number of images of other jobs that start before the next one of this job; 0 if none waits."""
        positions = []
        for engine in {engine for engine, _ in job.tasks.values()}:
            queue = engine.queue_positions()
            positions += [queue[task] for other, task in job.tasks.values() if other is engine and task in queue]
        return min(positions, default=-1) + 1

    def unfinished(self) -> list[Job]:
        """Return the jobs that have not ended."""
        return [job for job in self.jobs.values() if not job.ended]

    def uncollected(self) -> list[Job]:
        """Return the jobs whose final state no client has received."""
        return [job for job in self.jobs.values() if not job.collected]

    def measure(self) -> None:
        """Update the gauges of the metrics."""
        loads = [engine.load() for engine in self.engines]
        self.metrics.waiting.set(sum(waiting for waiting, _ in loads))
        self.metrics.active.set(sum(active for _, active in loads))
        self.metrics.stored.set(self.stored_bytes)
        texts = [engine.cascade.texts for engine in self.engines]
        self.metrics.texts.set(sum(len(encoder) for encoder in texts if encoder is not None))

    def close(self) -> None:
        """Stop the engines and the threads that encode files."""
        for engine in self.engines:
            engine.stop()
        self._files.shutdown(wait=False, cancel_futures=True)

    # --- reports of engines ---

    def _on_report(self, job: Job, picture: Picture, prepared: PreparedRequest, event: Any) -> None:
        if picture.ended:
            return
        if isinstance(event, Step):
            if picture.state == "queued":
                picture.state = "running"
                self._update_queue()
            engine, _ = job.tasks[picture]
            picture.stage, picture.step, picture.steps = event.stage, event.step, event.steps
            picture.resolution = engine.cascade.stages[event.stage].config.resolution
            picture.done, picture.total = event.done, event.total
            if event.preview is not None:
                picture.preview = event.preview
                picture.previews += 1
                if job.partials:
                    picture.partials.append(event.preview)
            job.changed()
        elif isinstance(event, Exception):
            self._fail(job, picture, event)
        else:
            task = asyncio.ensure_future(self._finish(job, picture, prepared, event))
            self._finishing.add(task)
            task.add_done_callback(self._finishing.discard)

    async def _finish(self, job: Job, picture: Picture, prepared: PreparedRequest, image: Image.Image) -> None:
        """Check and encode an image, in a thread."""
        if picture.ended:  # cancelled in the meantime
            return
        engine, task = job.tasks[picture]

        def encode() -> bytes:
            if self.config.check_picture is not None and (refusal := self.config.check_picture(image)):
                raise UserError(refusal)
            metadata = None
            if prepared.format == "png":
                metadata = {
                    **engine.cascade.metadata(task.request, 0),
                    "conditions": engine.cascade.conditions(task.request, 0),
                }
            return encoded(image, prepared.format, metadata, prepared.quality)

        try:
            data = await asyncio.get_running_loop().run_in_executor(self._files, encode)
        except Exception as error:
            if not picture.ended:
                self._fail(job, picture, error)
            return
        if picture.ended:
            return
        picture.data, picture.size, picture.state = data, image.size, "done"
        self.stored_bytes += len(data)
        self._on_end(job, picture)

    def _fail(self, job: Job, picture: Picture, error: Exception) -> None:
        internal = not isinstance(error, UserError)
        if internal:
            traceback.print_exception(error, file=sys.stderr)
        picture.state, picture.error = "failed", INTERNAL if internal else str(error)
        picture.status = 500 if internal else 422
        self._on_end(job, picture)

    def _stop(self, job: Job, picture: Picture) -> None:
        engine, task = job.tasks[picture]
        engine.cancel([task])

    def _on_end(self, job: Job, picture: Picture) -> None:
        picture.preview = None
        if picture.state != "done":
            picture.partials.clear()
        job.tasks.pop(picture, None)  # frees the input images
        self.metrics.pictures.labels(picture.state).inc()
        if job.ended:
            self._input_bytes -= job.input_bytes
            if job.deadline is not None:
                job.deadline.cancel()
            self.metrics.job_seconds.labels(job.kind).observe(time.monotonic() - job.began)
        job.changed()
        self._update_queue()
        self._delete_old()

    def _update_queue(self) -> None:
        """Notify the clients of queued jobs that their positions have changed."""
        now = time.monotonic()
        if now - self._queue_updated > QUEUE_SECONDS:
            self._queue_updated = now
            for job in self.jobs.values():
                if job.state == "queued":
                    job.changed()

    def _delete_old(self) -> None:
        """Delete finished jobs, oldest first, until the limits are met."""
        limits, now = self.config.limits, time.monotonic()
        for job in list(self.jobs.values()):
            old = now - job.began > limits.stored_seconds + self.config.timeout
            if not (old or self.stored_bytes > limits.stored_bytes or len(self.jobs) > limits.stored_jobs):
                break
            if job.ended and (old or not job.watchers):
                self.delete(job)

    def delete(self, job: Job) -> None:
        """Delete a job and its images, after cancelling it."""
        self.cancel(job)
        self.jobs.pop(job.id, None)
        for picture in job.pictures:
            self.pictures.pop(picture.id, None)
            self.stored_bytes -= len(picture.data or b"")
            picture.data = None


def _preview_rule(previews: bool, partials: int) -> Callable[[int, int, bool], bool]:
    """Return an image's `wants_preview`: evenly spaced with `partials`, else at intervals of time with `previews`."""
    last = 0.0

    def often(done: int, total: int, stage_ends: bool) -> bool:
        nonlocal last
        now = time.monotonic()
        if stage_ends or now - last > PREVIEW_SECONDS:
            last = now
            return True
        return False

    def evenly(done: int, total: int, stage_ends: bool) -> bool:
        return any(done == max(round(total * (i + 1) / (partials + 1)), 1) for i in range(partials))

    if partials:
        return evenly
    return often if previews else lambda done, total, stage_ends: False
