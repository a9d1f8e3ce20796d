"""What every request passes before anything reads it: names, sizes, times; and what every answer carries."""

import asyncio
import sys
import time
import traceback
from typing import Any

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from imagen.serve.access import Access
from imagen.serve.config import Limits
from imagen.serve.errors import INTERNAL, answer
from imagen.serve.metrics import Metrics

# The page needs nothing from anywhere else, and no script or style inside it.
POLICY = (
    "default-src 'self'; img-src 'self' blob: data:; object-src 'none'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)
HEADERS = {
    b"content-security-policy": POLICY.encode(),
    b"x-content-type-options": b"nosniff",
    b"referrer-policy": b"no-referrer",
    b"cross-origin-resource-policy": b"same-origin",
    b"x-frame-options": b"DENY",
}
METHODS = ("GET", "HEAD", "OPTIONS", "POST", "DELETE")
HEADERS_MOST, HEADERS_BYTES = 100, 2**14  # h11 counts only what does not arrive at once
CHANGING = ("POST", "DELETE", "PUT", "PATCH")


class Blocked(Exception):
    """A reader takes nothing."""


class Guard:
    """ASGI middleware, the outermost."""

    def __init__(self, app: ASGIApp, access: Access, limits: Limits, metrics: Metrics):
        self.app = app
        self.access = access
        self.limits = limits
        self.metrics = metrics
        self._reading = 0  # bytes of bodies, of all requests that are being answered
        self._too_much = f"the request is larger than {limits.body:,} bytes, the limit"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "websocket":
                return
            await self.app(scope, receive, send)
            return
        began, status = time.monotonic(), 0
        headers = dict(scope["headers"])

        async def out(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                present = {name for name, _ in message["headers"]}
                extra = [(name, value) for name, value in HEADERS.items() if name not in present]
                message = {**message, "headers": [*message["headers"], *extra]}
            # A reader that takes nothing for so long is gone; what waits for it is let go.
            try:
                await asyncio.wait_for(send(message), self.limits.send_seconds)
            except asyncio.TimeoutError:
                raise Blocked from None

        try:
            refusal = self._refusal(scope, headers)
            if refusal is not None:
                await refusal(scope, receive, out)
                return
            await self._passed(scope, receive, out)
        except Blocked:
            pass  # the connection is closed, since its answer is incomplete
        except Exception as error:
            traceback.print_exception(error, file=sys.stderr)
            if status:  # it has begun: the connection is closed
                return
            await answer(INTERNAL, 500)(scope, receive, out)
        finally:
            route = getattr(scope.get("route"), "path", "other")
            method = scope["method"] if scope["method"] in METHODS else "other"
            self.metrics.requests.labels(method, route, str(status)).inc()
            self.metrics.request_seconds.labels(route).observe(time.monotonic() - began)

    def _refusal(self, scope: Scope, headers: dict[bytes, bytes]) -> Any:
        host = headers.get(b"host", b"").decode("latin-1")
        if self.access.refuses_host(host):
            return answer("no server of that name is here; the operator can add it with --hostname", 421)
        if scope["method"] in CHANGING and self.access.refuses_origin(headers):
            return answer("pages of other sites may not call this server; the operator can allow one with --cors", 403)
        size = sum(len(name) + len(value) for name, value in scope["headers"])
        if len(scope["headers"]) > HEADERS_MOST or size > HEADERS_BYTES:
            return answer("the request has too many headers", 431)
        length = headers.get(b"content-length", b"0")
        if not length.isdigit() or len(length) > 18 or int(length) > self.limits.body:
            return answer(self._too_much, 413)
        return None

    async def _passed(self, scope: Scope, receive: Receive, send: Send) -> None:
        taken = 0
        limits = self.limits
        end = time.monotonic() + limits.body_seconds
        complete = False

        async def bounded() -> Message:
            nonlocal taken, complete
            if complete:
                return await receive()  # waits for the client to leave
            try:
                message = await asyncio.wait_for(receive(), max(end - time.monotonic(), 0))
            except asyncio.TimeoutError:
                raise HTTPException(408, "the request did not come to its end in time") from None
            if message["type"] == "http.request":
                taken += (size := len(message.get("body", b"")))
                self._reading += size
                complete = not message.get("more_body", False)
                if self._reading > limits.bodies:
                    text = "the server is reading as much as it can hold; try again in a moment"
                    raise HTTPException(503, text, {"Retry-After": "2"})
                if taken > limits.body:
                    raise HTTPException(413, self._too_much)
            return message

        try:
            await self.app(scope, bounded, send)
        finally:
            self._reading -= taken
