"""HTTP/1.1 connections that end: uvicorn alone would wait forever for a request's head, and for a reader."""

import asyncio
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

LOOKS = 4  # at a connection, in the shorter of the two times


class Connection(H11Protocol):
    """Closes a connection whose next request does not come, and one whose reader takes nothing.

    The time of a head runs from the connection's beginning, and again from the end of each answer: what else is sent
    meanwhile (a few bytes of the next head, the rest of a body that nobody reads) does not prolong it.
    """

    head_seconds = 15.0
    send_seconds = 60.0
    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._cycle = self.cycle
        self._waits_since = self._moved = self.loop.time()
        self._unsent = 0
        self._look()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        super().connection_lost(exc)

    def _look(self) -> None:
        self._timer = self.loop.call_later(min(self.head_seconds, self.send_seconds) / LOOKS, self._look)
        now, unsent = self.loop.time(), self.transport.get_write_buffer_size()
        if not unsent or unsent < self._unsent:
            self._moved = now
        self._unsent = unsent
        answering = self.cycle is not None and not self.cycle.response_complete
        if answering or unsent or self.cycle is not self._cycle:
            self._cycle, self._waits_since = self.cycle, now
        if now - self._moved > self.send_seconds:
            self.transport.abort()  # close() would wait until all is sent
        elif now - self._waits_since > self.head_seconds:
            self.transport.close()
