"""HTTP/1.1 connections with timeouts: uvicorn itself waits forever for headers and for clients that do not read."""

import asyncio
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

CHECKS = 4  # of a connection, per the shorter of the two timeouts


class Connection(H11Protocol):
    """Close a connection when the next request's headers do not arrive, or when the client does not read.

    The time for headers starts with the connection, and again at the end of each response. Other bytes that arrive
    meanwhile, such as a part of the headers or the rest of an unread body, do not extend it.
    """

    head_seconds = 15.0
    send_seconds = 60.0
    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._cycle = self.cycle
        self._waits_since = self._moved = self.loop.time()
        self._unsent = 0
        self._check()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        super().connection_lost(exc)

    def _check(self) -> None:
        self._timer = self.loop.call_later(min(self.head_seconds, self.send_seconds) / CHECKS, self._check)
        now, unsent = self.loop.time(), self.transport.get_write_buffer_size()
        if not unsent or unsent < self._unsent:
            self._moved = now
        self._unsent = unsent
        answering = self.cycle is not None and not self.cycle.response_complete
        if answering or unsent or self.cycle is not self._cycle:
            self._cycle, self._waits_since = self.cycle, now
        if now - self._moved > self.send_seconds:
            self.transport.abort()  # close() would wait until everything is sent
        elif now - self._waits_since > self.head_seconds:
            self.transport.close()
