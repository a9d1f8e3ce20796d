"""Who may ask, and how much: keys, addresses, rates, and pages of other sites."""

import hashlib
import hmac
import time
from pathlib import Path

from starlette.requests import Request

from imagen.errors import UserError
from imagen.files import open_given
from imagen.serve.config import ServeConfig
from imagen.serve.errors import Denied

LOCAL = ("localhost", "127.0.0.1", "[::1]")
MOST_CLIENTS = 10_000  # whose rates are remembered
KEY_BYTES = 2**20  # of a file of keys


def read_keys(file: Path) -> dict[str, str]:
    """The keys of a file, with their holders: a line is `HOLDER KEY`, or a comment that begins with #.

    Raises UserError, without showing a key.
    """
    with open_given(file) as opened:
        data = opened.read(KEY_BYTES + 1)
    if len(data) > KEY_BYTES:  # the last key would be cut, and its beginning taken for one
        raise UserError(f"{file} has more than {KEY_BYTES:,} bytes; a file of keys has lines of HOLDER KEY")
    text = data.decode("utf-8-sig", "replace")
    keys: dict[str, str] = {}
    for number, line in enumerate(text.split("\n"), 1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        if len(words) != 2:
            raise UserError(f"{file}, line {number}: it has {len(words)} words; a line is HOLDER KEY")
        holder, key = words
        if len(key) < 16 or not key.isascii():
            raise UserError(f"{file}, line {number}: the key of {holder} is too short; use 16 ASCII characters or more")
        if key in keys:
            raise UserError(f"{file}, line {number}: the key of {holder} is that of {keys[key]}, too")
        keys[key] = holder
    if not keys:
        raise UserError(f"{file} has no keys; a line is HOLDER KEY")
    return keys


class Access:
    def __init__(self, config: ServeConfig):
        self.config = config
        self._keys = [(_digest(key), holder) for key, holder in config.keys.items()]
        self._rates: dict[str, tuple[float, float]] = {}  # tokens, and when they were counted
        own = f"[{config.host}]" if ":" in config.host else config.host  # as an address has it
        names = {*LOCAL, *config.hostnames, *([] if config.host in ("0.0.0.0", "::") else [own.lower()])}
        # Everybody may name a server that listens to the world as they like, unless its names are given.
        self._hosts = None if config.host in ("0.0.0.0", "::") and not config.hostnames else names

    def client(self, request: Request) -> str:
        """The holder of the request's key, or its address. Raises Denied, 401, for a wrong key or none."""
        if not self._keys:
            return request.client.host if request.client else "unknown"
        given = request.headers.get("authorization", "")
        digest = _digest(given[7:].strip() if given[:7].lower() == "bearer " else "")
        holder = None
        for known, name in self._keys:  # all of them, so that time says nothing
            if hmac.compare_digest(known, digest):
                holder = name
        if holder is None:
            headers = {"WWW-Authenticate": "Bearer"}
            text = "this server wants an API key: send the header Authorization: Bearer KEY"
            raise Denied(401, text, headers, code="invalid_api_key")
        return holder

    def spend(self, client: str, pictures: int) -> None:
        """Count pictures against the client's rate. Raises Denied, 429."""
        rate = self.config.rate
        if rate is None:
            return
        now, most = time.monotonic(), max(rate, self.config.limits.n)  # a minute's worth may come at once
        tokens, then = self._rates.pop(client, (most, now))
        tokens = min(tokens + (now - then) * rate / 60, most)
        if tokens < pictures:
            self._rates[client] = (tokens, now)
            wait = str(int((pictures - tokens) * 60 / rate) + 1)
            text = f"at most {rate:g} pictures a minute; wait {wait} seconds"
            raise Denied(429, text, {"Retry-After": wait}, code="rate_limit_exceeded")
        self._rates[client] = (tokens - pictures, now)
        while len(self._rates) > MOST_CLIENTS:
            del self._rates[next(iter(self._rates))]

    def give_back(self, client: str, pictures: int) -> None:
        """Of pictures that were refused after all."""
        if client in self._rates:
            tokens, then = self._rates[client]
            self._rates[client] = (tokens + pictures, then)

    def refuses_host(self, host: str) -> bool:
        """Whether no server of this name is here: a page of another site may have its name point to this address."""
        name = host.rpartition(":")[0] if host.rpartition(":")[2].isdigit() else host
        return self._hosts is not None and name.lower() not in self._hosts

    def refuses_origin(self, headers: dict[bytes, bytes]) -> bool:
        """Whether a browser says that a page of another site sent this."""
        origin = headers.get(b"origin", b"").decode("latin-1")
        if origin in self.config.cors or "*" in self.config.cors:
            return False
        if headers.get(b"sec-fetch-site", b"none") in (b"cross-site", b"same-site"):
            return True
        host = headers.get(b"host", b"").decode("latin-1")
        return bool(origin) and origin.partition("://")[2].lower() != host.lower()


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "replace")).digest()
