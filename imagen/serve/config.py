"""What a server allows: addresses, limits, keys, and the checks of an operator's own."""

from collections.abc import Callable
from dataclasses import dataclass, field

from PIL import Image

CheckPrompt = Callable[[str], str | None]  # a sentence that refuses the prompt, or None
CheckPicture = Callable[[Image.Image], str | None]


@dataclass(frozen=True, kw_only=True)
class Limits:
    """The bounds of one request, and of all of them together."""

    n: int = 10  # pictures of a request
    steps: int = 250  # of a stage
    prompt: int = 2_000  # characters
    side: int = 4_096  # of a picture, in pixels
    pixels: int = 2**21  # of a picture that is made
    given_pixels: int = 2**24  # of a picture that is sent, before it is decoded
    body: int = 2**25  # bytes of a request
    bodies: int = 2**28  # bytes of requests that are being read, all together
    given_bytes: int = 2**29  # of decoded pictures that requests brought along, all together
    queue: int = 256  # pictures that wait; more are refused with 429
    batch_pixels: int = 2**18  # in one call of a network; 64 pictures of 64x64
    active_pixels: int = 2**23  # of the results that are being made; eight of 1024x1024
    active: int = 64  # pictures that are being made
    kept_bytes: int = 2**28  # of finished pictures in memory
    kept_jobs: int = 4_096
    kept_seconds: float = 900.0
    connections: int = 512
    header_seconds: float = 15.0  # until a connection has sent the head of its request
    body_seconds: float = 60.0  # until it has sent the rest
    send_seconds: float = 60.0  # that a reader may block


@dataclass(frozen=True, kw_only=True)
class ServeConfig:
    host: str = "127.0.0.1"
    port: int = 8000
    name: str = "imagen"  # of the model
    cascade: str = "CASCADE"  # as it is written in commands that make a picture again
    limits: Limits = field(default_factory=Limits)
    keys: dict[str, str] = field(default_factory=dict)  # key -> its holder; empty: everybody may
    rate: float | None = None  # pictures a minute for each holder, or address where there are no keys
    cors: tuple[str, ...] = ()  # origins whose pages may call
    hostnames: tuple[str, ...] = ()  # by which the server is called, beside its own address
    proxies: tuple[str, ...] = ()  # addresses and networks from which X-Forwarded-For and -Proto are believed
    timeout: float = 600.0  # seconds for a request, waiting included
    drain: float = 60.0  # seconds for what is accepted after SIGTERM
    check_prompt: CheckPrompt | None = None
    check_picture: CheckPicture | None = None  # with one there are no previews: they would show what it refuses
