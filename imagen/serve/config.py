"""Configuration of a server: address, limits, keys, and the operator's own checks."""

from collections.abc import Callable
from dataclasses import dataclass, field

from PIL import Image

CheckPrompt = Callable[[str], str | None]  # returns a sentence that rejects the prompt, or None
CheckPicture = Callable[[Image.Image], str | None]


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Limits per request, and of all requests together."""

    n: int = 10  # images per request
    steps: int = 250  # per stage
    prompt: int = 2_000  # characters
    side: int = 4_096  # of an image, in pixels
    pixels: int = 2**21  # of a generated image
    input_pixels: int = 2**24  # of an uploaded image, checked before decoding
    body: int = 2**25  # bytes per request body
    bodies: int = 2**28  # bytes of all request bodies being read or answered
    input_bytes: int = 2**29  # of the decoded input images of all unfinished jobs
    queue: int = 256  # waiting images; requests beyond get 429
    batch_pixels: int = 2**18  # per network evaluation; 64 samples of 64x64
    active_pixels: int = 2**23  # of all results being sampled; eight of 1024x1024
    active: int = 64  # images being sampled
    stored_bytes: int = 2**28  # of finished images in memory
    stored_jobs: int = 4_096
    stored_seconds: float = 900.0
    connections: int = 512
    header_seconds: float = 15.0  # for a connection to send the headers of a request
    body_seconds: float = 60.0  # for the body
    send_seconds: float = 60.0  # that a client may read nothing


@dataclass(frozen=True, kw_only=True)
class ServeConfig:
    """Settings of `imagen serve`."""

    host: str = "127.0.0.1"
    port: int = 8000
    name: str = "imagen"  # of the model in the API
    cascade: str = "CASCADE"  # as written in the commands that regenerate an image
    limits: Limits = field(default_factory=Limits)
    keys: dict[str, str] = field(default_factory=dict)  # key -> holder; empty: no key is required
    rate: float | None = None  # images per minute for each holder, or address without keys
    cors: tuple[str, ...] = ()  # origins of pages that may call the API
    hostnames: tuple[str, ...] = ()  # names of the server besides its own address
    proxies: tuple[str, ...] = ()  # addresses and networks whose X-Forwarded-For and -Proto are trusted
    timeout: float = 600.0  # seconds per request, including waiting
    drain: float = 60.0  # seconds after SIGTERM to finish accepted requests
    check_prompt: CheckPrompt | None = None
    check_picture: CheckPicture | None = None  # disables previews, which would show rejected images
