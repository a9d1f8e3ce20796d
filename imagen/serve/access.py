"""Access control: keys, rates, host names, and origins of pages."""

import hashlib
import hmac
import time
from pathlib import Path

from starlette.requests import Request

from imagen.errors import UserError
from imagen.files import open_given
from imagen.serve.config import ServeConfig
from imagen.serve.errors import AccessDenied

LOCAL = ("localhost", "127.0.0.1", "[::1]")
MAX_CLIENTS = 10_000  # with a stored rate; the oldest are removed
MAX_KEY_FILE = 2**20  # bytes


def read_keys(file: Path) -> dict[str, str]:
    """Read a file of keys, with lines `HOLDER KEY` and comments that start with #. Returns {key: holder}.

    Raises UserError; the message never contains a key.
    """
    with open_given(file) as opened:
        data = opened.read(MAX_KEY_FILE + 1)
    if len(data) > MAX_KEY_FILE:  # the last key would be truncated, and still accepted as a key
        raise UserError(f"{file} has more than {MAX_KEY_FILE:,} bytes; a key file has lines of HOLDER KEY")
    text = data.decode("utf-8-sig", "replace")
    keys: dict[str, str] = {}
    for number, line in enumerate(text.split("\n"), 1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        if len(words) != 2:
            raise UserError(f"{file}, line {number}: {len(words)} words; write HOLDER KEY")
        holder, key = words
        if len(key) < 16 or not key.isascii():
            raise UserError(f"{file}, line {number}: the key of {holder} is too short; use 16 ASCII characters or more")
        if key in keys:
            raise UserError(f"{file}, line {number}: {holder} has the same key as {keys[key]}; use another")
        keys[key] = holder
    if not keys:
        raise UserError(f"{file} has no keys; write lines of HOLDER KEY")
    return keys


class Access:
    """Decide which requests are allowed."""

    def __init__(self, config: ServeConfig):
        self.config = config
        self._keys = [(_digest(key), holder) for key, holder in config.keys.items()]
        self._rates: dict[str, tuple[float, float]] = {}  # client -> tokens, and when they were counted
        own = f"[{config.host}]" if ":" in config.host else config.host  # as in an URL
        names = {*LOCAL, *config.hostnames, *([] if config.host in ("0.0.0.0", "::") else [own.lower()])}
        # The names of a server that listens on all interfaces are unknown unless the operator sets them.
        self._hosts = None if config.host in ("0.0.0.0", "::") and not config.hostnames else names

    def client(self, request: Request) -> str:
        """Return the holder of the request's key, or its address if the server has no keys.

        Raises AccessDenied, 401, for a wrong or missing key.
        """
        if not self._keys:
            return request.client.host if request.client else "unknown"
        header = request.headers.get("authorization", "")
        digest = _digest(header[7:].strip() if header[:7].lower() == "bearer " else "")
        holder = None
        for known, name in self._keys:  # all of them, so that the time reveals nothing
            if hmac.compare_digest(known, digest):
                holder = name
        if holder is None:
            headers = {"WWW-Authenticate": "Bearer"}
            text = "this server requires an API key; send the header Authorization: Bearer KEY"
            raise AccessDenied(401, text, headers, code="invalid_api_key")
        return holder

    def charge(self, client: str, images: int) -> None:
        """Charge images to the client's rate. Raises AccessDenied, 429, above the rate."""
        rate = self.config.rate
        if rate is None:
            return
        now = time.monotonic()
        burst = max(rate, self.config.limits.n)  # the images of one minute may be requested at once
        tokens, then = self._rates.pop(client, (burst, now))
        tokens = min(tokens + (now - then) * rate / 60, burst)
        if tokens < images:
            self._rates[client] = (tokens, now)
            wait = str(int((images - tokens) * 60 / rate) + 1)
            text = f"the limit is {rate:g} images per minute; wait {wait} seconds"
            raise AccessDenied(429, text, {"Retry-After": wait}, code="rate_limit_exceeded")
        self._rates[client] = (tokens - images, now)
        while len(self._rates) > MAX_CLIENTS:
            del self._rates[next(iter(self._rates))]

    def refund(self, client: str, images: int) -> None:
        """Undo the charge of images that were rejected afterwards."""
        if client in self._rates:
            tokens, then = self._rates[client]
            self._rates[client] = (tokens + images, then)

    def is_foreign_host(self, host: str) -> bool:
        """Return whether a Host header names another server, as in DNS rebinding attacks."""
        name = host.rpartition(":")[0] if host.rpartition(":")[2].isdigit() else host
        return self._hosts is not None and name.lower() not in self._hosts

    def is_foreign_origin(self, headers: dict[bytes, bytes]) -> bool:
        """Return whether a browser sent the request for a page of another site that is not allowed."""
        origin = headers.get(b"origin", b"").decode("latin-1")
        if origin in self.config.cors or "*" in self.config.cors:
            return False
        if headers.get(b"sec-fetch-site", b"none") in (b"cross-site", b"same-site"):
            return True
        host = headers.get(b"host", b"").decode("latin-1")
        return bool(origin) and origin.partition("://")[2].lower() != host.lower()


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "replace")).digest()
