"""Check requests before routing (host, origin, sizes, times), and add security headers to responses."""

import asyncio
import sys
import time
import traceback

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from imagen.serve.access import Access
from imagen.serve.config import Limits
from imagen.serve.errors import INTERNAL, error_response
from imagen.serve.metrics import Metrics

# The page loads nothing from other hosts and has no inline scripts or styles.
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
CLIENT_CLOSED = 499  # in the metrics; nginx's code for a client that closes the connection first
METHODS = ("GET", "HEAD", "OPTIONS", "POST", "DELETE")
MAX_HEADERS, MAX_HEADER_BYTES = 100, 2**14  # h11 limits only headers that arrive in several parts
CHANGING = ("POST", "DELETE", "PUT", "PATCH")


class Blocked(Exception):
    """Raised when a client does not read its response."""


class Guard:
    """The outermost ASGI middleware."""

    def __init__(self, app: ASGIApp, access: Access, limits: Limits, metrics: Metrics):
        self.app = app
        self.access = access
        self.limits = limits
        self.metrics = metrics
        self._reading = 0  # bytes of the bodies of all requests being read or answered
        self._too_large = f"the request is too large; the limit is {limits.body:,} bytes"

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
            # A client that reads nothing for this long has disconnected; free the memory of its request.
            try:
                await asyncio.wait_for(send(message), self.limits.send_seconds)
            except asyncio.TimeoutError:
                raise Blocked from None

        try:
            rejection = self._check(scope, headers)
            if rejection is not None:
                await rejection(scope, receive, out)
                return
            await self._route(scope, receive, out)
        except Blocked:
            pass  # uvicorn closes the connection, because the response is incomplete
        except ClientDisconnect:
            status = status or CLIENT_CLOSED  # while it sent its body: no client is left to answer
        except Exception as error:
            traceback.print_exception(error, file=sys.stderr)
            if status:  # the response has begun; uvicorn closes the connection
                return
            await error_response(INTERNAL, 500)(scope, receive, out)
        finally:
            route = getattr(scope.get("route"), "path", "other")
            method = scope["method"] if scope["method"] in METHODS else "other"
            self.metrics.requests.labels(method, route, str(status)).inc()
            self.metrics.request_seconds.labels(route).observe(time.monotonic() - began)

    def _check(self, scope: Scope, headers: dict[bytes, bytes]) -> JSONResponse | None:
        """Return the error response for a request that must not be routed; None for others."""
        host = headers.get(b"host", b"").decode("latin-1")
        if self.access.is_foreign_host(host):
            return error_response("unknown host name; the operator can add it with --hostname", 421)
        if scope["method"] in CHANGING and self.access.is_foreign_origin(headers):
            return error_response(
                "pages of other sites may not call this server; the operator can allow one with --cors", 403
            )
        size = sum(len(name) + len(value) for name, value in scope["headers"])
        if len(scope["headers"]) > MAX_HEADERS or size > MAX_HEADER_BYTES:
            return error_response("the request has too many headers", 431)
        length = headers.get(b"content-length", b"0")
        if not length.isdigit() or len(length) > 18 or int(length) > self.limits.body:
            return error_response(self._too_large, 413)
        return None

    async def _route(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the application, with limits on the size and the time of the body."""
        received = 0
        limits = self.limits
        end = time.monotonic() + limits.body_seconds
        complete = False

        async def bounded() -> Message:
            nonlocal received, complete
            if complete:
                return await receive()  # waits until the client leaves
            try:
                message = await asyncio.wait_for(receive(), max(end - time.monotonic(), 0))
            except asyncio.TimeoutError:
                raise HTTPException(408, "the request body did not arrive in time; try again") from None
            if message["type"] == "http.request":
                received += (size := len(message.get("body", b"")))
                self._reading += size
                complete = not message.get("more_body", False)
                if self._reading > limits.bodies:
                    text = "the memory for request bodies is full; try again in a few seconds"
                    raise HTTPException(503, text, {"Retry-After": "2"})
                if received > limits.body:
                    raise HTTPException(413, self._too_large)
            return message

        try:
            await self.app(scope, bounded, send)
        finally:
            self._reading -= received
