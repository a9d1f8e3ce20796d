"""`imagen serve`"""

import argparse
import ipaddress
from pathlib import Path
from typing import Any

from imagen.cli.command import Command, add_cascade, add_device, add_int8_text, add_precision, add_quiet
from imagen.cli.values import count, minutes, number, up_to
from imagen.errors import UserError

LOCAL = ("127.0.0.1", "::1")


def add(parser: argparse.ArgumentParser) -> None:
    add_cascade(parser)
    parser.add_argument("--port", type=up_to(65535), default=8000, metavar="N", help="default: 8000")
    parser.add_argument("--host", default="127.0.0.1", metavar="ADDRESS", help="default: 127.0.0.1, this machine only")
    where = parser.add_mutually_exclusive_group()
    add_device(where)
    where.add_argument("--workers-devices", metavar="NAME,...", help="one engine per device, as in cuda:0,cuda:1")
    add_precision(parser)
    add_int8_text(parser)
    add_quiet(parser)
    parser.add_argument(
        "--lora",
        type=Path,
        action="append",
        default=[],
        metavar="FILE",
        help="a LoRA file that requests can use by name (repeatable)",
    )
    parser.add_argument("--name", metavar="NAME", help="model name in the API (default: the cascade's)")
    parser.add_argument(
        "--keys", type=Path, metavar="FILE", help="file of API keys, lines of HOLDER KEY (default: no key is needed)"
    )
    parser.add_argument("--rate", type=number, metavar="N", help="images per minute and client (default: no limit)")
    parser.add_argument("--queue", type=count, default=256, metavar="N", help="images that may wait (default: 256)")
    parser.add_argument("--max-n", type=count, default=10, metavar="N", help="images per request (default: 10)")
    parser.add_argument("--max-steps", type=count, default=250, metavar="N", help="steps per stage (default: 250)")
    parser.add_argument(
        "--timeout", type=minutes, default=600.0, metavar="S", help="seconds per request (default: 600)"
    )
    parser.add_argument(
        "--drain",
        type=minutes,
        default=60.0,
        metavar="S",
        help="seconds to finish accepted requests at shutdown (default: 60)",
    )
    parser.add_argument(
        "--batch-pixels", type=count, metavar="N", help="pixels per network evaluation (default: 2^18; on a GPU 2^22)"
    )
    parser.add_argument(
        "--hostname",
        action="append",
        default=[],
        metavar="NAME",
        help="host name of the server, behind a proxy (repeatable)",
    )
    parser.add_argument("--proxy", action="store_true", help="trust X-Forwarded-For and -Proto from this machine")
    parser.add_argument(
        "--proxy-from",
        action="append",
        default=[],
        metavar="ADDRESS",
        help="trust these headers from this address or network",
    )
    parser.add_argument(
        "--cors", action="append", default=[], metavar="ORIGIN", help="let pages of this origin call the API"
    )
    parser.add_argument(
        "--filter",
        metavar="MODULE",
        help="your Python module with check_prompt(text) or check_picture(image), which return why they refuse",
    )


def run(options: argparse.Namespace) -> None:
    from imagen.cli.devices import choose_device
    from imagen.serve import Limits, ServeConfig

    try:
        from imagen.serve.access import read_keys
        from imagen.serve.running import serve
    except ModuleNotFoundError as error:
        from imagen.distribution import missing

        raise missing(f"serving needs the package {error.name}", "serve") from None
    if options.workers_devices:
        devices = [choose_device(name.strip()) for name in options.workers_devices.split(",")]
    else:
        devices = [choose_device(options.device)]
    if options.rate is not None and options.rate <= 0:
        raise UserError(f"--rate is {options.rate:g}; it must be above 0")
    on_cpu = all(name == "cpu" for name in devices)
    limits = Limits(
        n=min(options.max_n, options.queue),  # more would wait forever
        steps=options.max_steps,
        queue=options.queue,
        batch_pixels=options.batch_pixels or (2**18 if on_cpu else 2**22),
        active_pixels=2**23 if on_cpu else 2**25,
    )
    prompt, picture = (None, None) if options.filter is None else _filters(options.filter)
    config = ServeConfig(
        host=options.host,
        port=options.port,
        name=options.name or options.cascade.resolve().name,
        cascade=str(options.cascade),
        limits=limits,
        keys={} if options.keys is None else read_keys(options.keys),
        rate=options.rate,
        cors=tuple(options.cors),
        hostnames=tuple(name.lower() for name in options.hostname),
        proxies=(*(LOCAL if options.proxy else ()), *map(_network, options.proxy_from)),
        timeout=options.timeout,
        drain=options.drain,
        check_prompt=prompt,
        check_picture=picture,
    )
    serve(
        options.cascade,
        config,
        devices=devices,
        precision=options.precision,
        int8_text=options.int8_text,
        lora=options.lora,
    )


def _network(text: str) -> str:
    try:
        return str(ipaddress.ip_network(text, strict=False))
    except ValueError:
        raise UserError(
            f"--proxy-from {text} is neither an address nor a network, such as 10.0.0.7 or 10.0.0.0/8"
        ) from None


def _filters(name: str) -> tuple[Any, Any]:
    """Import the operator's checks; return (check_prompt, check_picture), None for a missing one."""
    import importlib
    import inspect
    import sys

    sys.path.insert(0, "")  # a file in the current folder
    try:
        module = importlib.import_module(name)
    except Exception as error:  # the operator's code may raise anything
        reason = f"{type(error).__name__}: {error}" if not isinstance(error, ImportError) else str(error)
        raise UserError(f"--filter {name}: {reason}; it must be a module that Python can import") from None
    prompt, picture = getattr(module, "check_prompt", None), getattr(module, "check_picture", None)
    if not callable(prompt) and not callable(picture):
        raise UserError(f"--filter {name} has neither a function check_prompt nor check_picture")
    for function in (prompt, picture):
        if inspect.iscoroutinefunction(function):
            raise UserError(f"--filter {name}: {function.__name__} is async; it must be a plain function")
    return prompt, picture


COMMAND = Command(
    name="serve",
    help="serve a cascade: a web page and an HTTP API",
    add=add,
    run=run,
    details="A page at /, OpenAI's image API at /v1, our own at /api (described at /docs), /healthz, /readyz,\n"
    "/metrics. Requests of all users are batched together. SIGTERM finishes accepted requests.\n"
    "docs/howto/serve.md describes nginx, containers and systemd.\n\n"
    "  imagen serve emoji\n"
    "  imagen serve cascade --host 0.0.0.0 --keys keys.txt --rate 30 --workers-devices cuda:0,cuda:1",
    has_output=False,
)
