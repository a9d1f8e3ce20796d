"""Load test of a server: valid and invalid requests of every kind, many at once.

    imagen serve emoji --port 8000 &
    python benchmarks/serve_load.py http://127.0.0.1:8000 [--requests 10000] [--at-once 64] [--json FILE]

--seed determines the order of requests. Each kind of request defines its correct responses; any other response or
exception counts as wrong. During the test the server's memory is read from /metrics. At the end every accepted image
must be accounted for, and none may be in progress. Sends requests to this machine only. Needs httpx.
"""

import argparse
import asyncio
import base64
import io
import json
import random
import re
import statistics
import struct
import time
import zlib
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from measure import describe_machine, machine
from PIL import Image

from imagen.files import write_json

PROMPTS = [
    f"{thing} on a {colour} background"
    for thing in ("an octopus", "a cat", "a pizza", "a red apple", "a rocket")
    for colour in ("blue", "green", "red", "yellow")
]
Kind = Callable[["Load"], Awaitable[bool]]  # returns whether the response was correct


class Load:
    """A client, the test images, and the random choices of the requests."""

    def __init__(self, client: httpx.AsyncClient, seed: int):
        self.client = client
        self.random = random.Random(seed)
        self.small_image = png(64)
        self.large_image = png(256)
        self.busy = 0  # responses 429; each request is repeated after its Retry-After

    def body(self, size: int = 64, **fields: Any) -> dict[str, Any]:
        """Return the JSON body of a request for a square image of `size` pixels with a random prompt and seed."""
        seed = self.random.randrange(2**31)
        return {"prompt": self.random.choice(PROMPTS), "seed": seed, "size": f"{size}x{size}", **fields}

    async def post(self, path: str, **request: Any) -> httpx.Response:
        """Send a POST request, and repeat it after each 429."""
        while True:
            answer = await self.client.post(path, **request)
            if answer.status_code != 429:
                return answer
            self.busy += 1
            await asyncio.sleep(float(answer.headers["retry-after"]))

    async def generates(self, size: int = 64, **fields: Any) -> bool:
        """Request an image; return whether the response contains one of the right size."""
        answer = await self.post("/v1/images/generations", json=self.body(size, **fields))
        return answer.status_code == 200 and is_image(answer.json()["data"][0]["b64_json"], size)

    async def rejects(self, status: int, path: str = "/api/generate", **request: Any) -> bool:
        """Send an invalid request; return whether the response has `status` and an error message."""
        answer = await self.client.post(path, **request)
        return answer.status_code == status and bool(answer.json()["error"]["message"])


async def quick(load: Load) -> bool:
    return await load.generates(steps=3)


async def base(load: Load) -> bool:
    return await load.generates()


async def middle(load: Load) -> bool:
    return await load.generates(256)


async def large(load: Load) -> bool:
    return await load.generates(1024, steps=[10, 2, 2])


async def several(load: Load) -> bool:
    answer = await load.post("/v1/images/generations", json=load.body(steps=4, n=4))
    return answer.status_code == 200 and len(answer.json()["data"]) == 4


async def settings(load: Load) -> bool:
    sampler = load.random.choice(("ddpm", "ddim", "heun", "dpmpp_2m_sde"))
    body = load.body(sampler=sampler, steps=load.random.randint(2, 6), guidance=load.random.uniform(1, 4), stream=True)
    answer = await load.post("/api/generate", json=body)
    return answer.status_code == 200 and answer.text.rstrip().endswith('"state":"done","error":null}')


async def edited(load: Load) -> bool:
    form = {"prompt": load.random.choice(PROMPTS), "size": "64x64", "steps": "4"}
    answer = await load.post("/v1/images/edits", files={"image": load.large_image}, data=form)
    return answer.status_code == 200 and is_image(answer.json()["data"][0]["b64_json"], 64)


async def polled(load: Load) -> bool:
    answer = await load.post("/api/generate", json=load.body(steps=3))
    job = answer.json()
    while job["state"] in ("queued", "running"):
        await asyncio.sleep(0.2)
        job = (await load.client.get(f"/api/jobs/{job['id']}")).json()
    return (await load.client.get(job["pictures"][0]["url"])).status_code == 200


async def cancelled(load: Load) -> bool:
    answer = await load.post("/api/generate", json=load.body(steps=100))
    await asyncio.sleep(load.random.uniform(0, 0.5))
    return (await load.client.delete(f"/api/jobs/{answer.json()['id']}")).json()["state"] in ("cancelled", "done")


async def disconnected(load: Load) -> bool:
    """Disconnect before the response, or while it is streamed."""
    body = load.body(steps=100, stream=load.random.random() < 0.5)
    try:
        await asyncio.wait_for(load.client.post("/api/generate", json=body), load.random.uniform(0.02, 0.5))
    except asyncio.TimeoutError:
        return True
    return True


async def slow(load: Load) -> bool:
    """Read a streamed response slowly."""
    async with load.client.stream("POST", "/api/generate", json=load.body(steps=10, stream=True)) as answer:
        if answer.status_code == 429:
            return True
        text = b""
        async for piece in answer.aiter_raw(4096):
            text += piece
            await asyncio.sleep(0.05)
        return b'"state":"done"' in text


async def unfinished(load: Load) -> bool:
    """Send an incomplete request over a plain TCP connection, and close it."""
    port = load.client.base_url.port or 80
    _, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"POST /api/generate HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{")
    await writer.drain()
    await asyncio.sleep(load.random.uniform(0, 1))
    writer.close()
    return True


async def malformed(load: Load) -> bool:
    content = load.random.choice(
        (b"{", b"", b"\xff", b"[" * 10_000, b'{"prompt": 7}', b'{"prompt": "x", "steps": "y"}')
    )
    answer = await load.client.post("/api/generate", content=content, headers={"content-type": "application/json"})
    return answer.status_code in (400, 422) and "error" in answer.json()


async def over_limit(load: Load) -> bool:
    body, status = load.random.choice(
        (
            ({"prompt": "x" * 5000}, 422),
            ({"prompt": "x", "n": 1000}, 422),
            ({"prompt": "x", "steps": 10**6}, 422),
            ({"prompt": "x", "size": "100000x64"}, 413),
            ({"prompt": "x", "guidance": 1e30}, 422),
        )
    )
    return await load.rejects(status, json=body)


async def huge_body(load: Load) -> bool:
    try:
        return await load.rejects(413, content=bytes(2**25 + 1))
    except httpx.TransportError:
        return True  # the server answers and closes before it has received the whole body


async def bomb(load: Load) -> bool:
    """Upload a file of 50 kB that contains 60,000 x 60,000 pixels, or 50 MB of text."""
    head = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0))
    data = head + chunk(b"IDAT", PACKED) + chunk(b"IEND", b"")
    if load.random.random() < 0.5:
        data = load.small_image[:33] + chunk(b"zTXt", b"a\0\0" + PACKED) + load.small_image[33:]
    form = {"prompt": "x", "size": "64x64", "steps": "2"}
    answer = await load.post("/v1/images/edits", files={"image": ("../../x.png", data)}, data=form)
    return answer.status_code in (200, 413, 422)


async def not_an_image(load: Load) -> bool:
    data = load.random.choice((b"PK\x03\x04" + PACKED, b"<svg/>", load.small_image[:300], load.random.randbytes(2000)))
    return await load.rejects(422, "/v1/images/edits", files={"image": data}, data={"prompt": "x"})


async def path(load: Load) -> bool:
    name = load.random.choice(
        ("/page/..%2f..%2fapp.py", "/api/pictures/%2e%2e", "/api/jobs/x", "/.git/config", "/page/x")
    )
    return (await load.client.get(name)).status_code == 404


async def headers(load: Load) -> bool:
    flood = {f"X-{i}": "y" * 100 for i in range(500)}
    try:
        return (await load.client.get("/healthz", headers=flood)).status_code in (400, 431)
    except httpx.TransportError:
        return True


async def html(load: Load) -> bool:
    body = load.body(steps=2) | {"prompt": "<script>alert(1)</script>"}
    answer = await load.post("/api/generate", json=body)
    return answer.status_code == 202 and answer.headers["content-type"] == "application/json"


async def page_and_health(load: Load) -> bool:
    name = load.random.choice(("/", "/page/app.js", "/healthz", "/readyz", "/v1/models", "/api/about", "/metrics"))
    return (await load.client.get(name)).status_code == 200


KINDS: dict[str, tuple[Kind, int]] = {  # with their number per thousand requests
    "64 px, 3 steps": (quick, 190),
    "64 px, 20 steps": (base, 25),
    "256 px": (middle, 10),
    "1024 px": (large, 2),
    "4 images of 64 px, 4 steps": (several, 10),
    "64 px, any sampler, streamed": (settings, 50),
    "edit": (edited, 25),
    "job, polled": (polled, 40),
    "cancelled": (cancelled, 50),
    "client disconnected": (disconnected, 60),
    "slow reader": (slow, 15),
    "unfinished request": (unfinished, 20),
    "malformed": (malformed, 120),
    "over a limit": (over_limit, 120),
    "body of 32 MiB": (huge_body, 3),
    "decompression bomb": (bomb, 25),
    "not an image": (not_an_image, 45),
    "path traversal": (path, 60),
    "flood of headers": (headers, 20),
    "HTML in the prompt": (html, 20),
    "page, health, metrics": (page_and_health, 90),
}
PACKED = zlib.compress(bytes(5 * 10**7))


def png(side: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)).save(file, "PNG")
    return file.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def is_image(text: str, side: int) -> bool:
    image = Image.open(io.BytesIO(base64.b64decode(text)))
    image.load()
    return image.size == (side, side)


def metrics(text: str) -> dict[str, float]:
    """Parse the response of /metrics: values by name and labels."""
    return {name: float(value) for name, value in re.findall(r"^(imagen_\S+) (\S+)$", text, re.M)}


async def drive(options: argparse.Namespace) -> dict[str, Any]:
    """Send all requests, and return their durations, the wrong responses, and the server's metrics at the end."""
    timeout = httpx.Timeout(600, connect=60)
    limits = httpx.Limits(max_connections=4 * options.at_once)
    async with httpx.AsyncClient(base_url=options.url, timeout=timeout, limits=limits, trust_env=False) as client:
        load = Load(client, options.seed)
        names = load.random.choices(list(KINDS), [share for _, share in KINDS.values()], k=options.requests)
        seconds: dict[str, list[float]] = defaultdict(list)
        wrong: Counter[str] = Counter()
        memory: list[float] = []
        examples: list[str] = []
        queue = iter(names)
        began = time.monotonic()

        async def work() -> None:
            for name in queue:
                start = time.monotonic()
                try:
                    right, why = await KINDS[name][0](load), "wrong response"
                except Exception as error:
                    right, why = False, repr(error)
                seconds[name].append(time.monotonic() - start)
                if not right:
                    wrong[name] += 1
                    examples.append(f"{name}: {why}")

        async def watch() -> None:
            while True:
                memory.append(metrics((await client.get("/metrics")).text)['imagen_memory_bytes{of="process"}'])
                done = sum(map(len, seconds.values()))
                print(f"{time.monotonic() - began:5.0f} s {done:6} {memory[-1] / 2**20:6.0f} MiB", flush=True)
                await asyncio.sleep(10)

        watching = asyncio.ensure_future(watch())
        await asyncio.gather(*(work() for _ in range(options.at_once)))
        total = time.monotonic() - began
        watching.cancel()
        for _ in range(120):  # jobs that no client waits for are still in progress
            end = metrics((await client.get("/metrics")).text)
            if not end["imagen_pictures_waiting"] + end["imagen_pictures_active"]:
                break
            await asyncio.sleep(1)
    return {
        "seconds": total,
        "wrong": dict(wrong),
        "examples": examples[:20],
        "busy": load.busy,
        "memory": memory,
        "end": {name: value for name, value in end.items() if "bucket" not in name and "_created" not in name},
        "times": seconds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url", help="address of the server, on this machine")
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--at-once", type=int, default=64, help="concurrent requests (default: 64)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, default=Path(__file__).with_suffix(".json"))
    options = parser.parse_args()
    if httpx.URL(options.url).host not in ("127.0.0.1", "localhost", "::1"):
        parser.error("this load test sends floods and decompression bombs; URL must be a server on this machine")
    found = asyncio.run(drive(options))
    print("\n| kind | requests | p50 s | p95 s | wrong |\n|---|---|---|---|---|")
    for name in KINDS:
        times = sorted(found["times"].get(name, ()))
        if len(times) > 1:
            p95 = statistics.quantiles(times, n=20)[-1]
            row = (name, len(times), f"{statistics.median(times):.2f}", f"{p95:.2f}", found["wrong"].get(name, 0))
            print("| " + " | ".join(map(str, row)) + " |")
    print(f"\n{options.requests:,} requests in {found['seconds']:.0f} s; repeated after status 429: {found['busy']}")
    print(f"memory: {found['memory'][0] / 2**20:.0f} MiB at the start, {max(found['memory']) / 2**20:.0f} MiB at most")
    pictures = {name: value for name, value in found["end"].items() if name.startswith("imagen_pictures")}
    print(f"images at the end: {json.dumps(pictures)}")
    print("\n".join(found["examples"]))
    print(describe_machine(machine()))
    write_json(
        options.json, {"machine": machine(), **{name: value for name, value in found.items() if name != "times"}}
    )


if __name__ == "__main__":
    main()
