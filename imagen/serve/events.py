"""Follow a job: send events, or one response at its end. If the client disconnects, the job is cancelled."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from imagen.serve.errors import AccessDenied
from imagen.serve.job import Job
from imagen.serve.jobs import Jobs

IDLE_SECONDS = 15.0  # after which a comment is sent, so that proxies do not close the connection


class EventStream(Response):
    """Send the pairs (name or None, JSON) of `events`; call `on_end` when they end or the client leaves."""

    def __init__(self, events: AsyncIterator[tuple[str | None, Any]], on_end: Callable[[], None]):
        super().__init__(media_type="text/event-stream")
        self.events = events
        self.on_end = on_end

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        sending = asyncio.ensure_future(self._send(send))
        leaving = asyncio.ensure_future(disconnected(receive))
        try:
            await asyncio.wait((sending, leaving), return_when=asyncio.FIRST_COMPLETED)
            if sending.done():
                sending.result()
        finally:
            for task in (sending, leaving):
                task.cancel()
                with suppress(asyncio.CancelledError, Exception):
                    await task
            self.on_end()

    async def _send(self, send: Send) -> None:
        headers = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-store")]
        headers.append((b"x-accel-buffering", b"no"))  # nginx would buffer events
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        async for name, value in self.events:
            text = ": waiting\n\n"
            if value is not None:
                first = "" if name is None else f"event: {name}\n"
                text = f"{first}data: {json.dumps(value, ensure_ascii=False, separators=(',', ':'))}\n\n"
            await send({"type": "http.response.body", "body": text.encode(), "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def disconnected(receive: Receive) -> None:
    """Wait until the client has disconnected."""
    message: Message = {"type": ""}
    while message["type"] != "http.disconnect":
        message = await receive()


async def changes(job: Job) -> AsyncIterator[bool]:
    """Yield True at once and after each change of the job, False after `IDLE_SECONDS` without one; stop at its end."""
    event = asyncio.Event()
    job.watchers.add(event)
    changed = True
    try:
        while True:
            ended = job.ended
            yield changed
            if ended:
                job.collected = True
                return
            try:
                await asyncio.wait_for(event.wait(), IDLE_SECONDS)
                changed = True
            except asyncio.TimeoutError:
                changed = False
            event.clear()
    finally:
        job.watchers.discard(event)


async def until_ended(request: Request, jobs: Jobs, job: Job) -> None:
    """Wait for the end of a job; cancel it if the client leaves. Raises AccessDenied if it fails."""

    async def end() -> None:
        async for _ in changes(job):
            pass

    ending, leaving = asyncio.ensure_future(end()), asyncio.ensure_future(disconnected(request.receive))
    try:
        await asyncio.wait((ending, leaving), return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in (ending, leaving):
            task.cancel()
        jobs.cancel(job)
    if job.state != "done":
        raise AccessDenied(status_of(job), job.error or "the request was cancelled")


def status_of(job: Job) -> int:
    """Return the HTTP status of a failed or cancelled job: that of its first failed image."""
    return next((picture.status for picture in job.pictures if picture.error), 410)
