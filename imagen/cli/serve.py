"""`imagen serve`: options, help, and what it does. Heavy imports are inside."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from imagen.cli.sampling import PRECISIONS
from imagen.cli.values import count, minutes, number, up_to
from imagen.errors import UserError


def add_serve(command: Callable[..., Any]) -> None:
    """command: adds one, given its name, function, help and epilog."""
    sub = command(
        "serve",
        serve,
        "serve a cascade: a page to draw with, and an HTTP API",
        "A page at /, OpenAI's API for pictures at /v1, our own at /api (described at /docs), /healthz, /readyz,\n"
        "/metrics. Requests of all users are batched together. SIGTERM finishes what was accepted.\n"
        "docs/howto/serve.md says how to put it behind nginx, into a container, or under systemd.\n\n"
        "  imagen serve emoji\n"
        "  imagen serve cascade --host 0.0.0.0 --keys keys.txt --rate 30 --workers-devices cuda:0,cuda:1",
    )
    sub.add_argument("cascade", type=Path, metavar="CASCADE", help="a cascade folder, a training run, or `emoji`")
    sub.add_argument("--port", type=up_to(65535), default=8000, metavar="N", help="default: 8000")
    sub.add_argument("--host", default="127.0.0.1", metavar="ADDRESS", help="default: 127.0.0.1, this machine alone")
    where = sub.add_mutually_exclusive_group()
    where.add_argument("--device", metavar="NAME", help="cpu, cuda, cuda:1... (default: a GPU if there is one)")
    where.add_argument("--workers-devices", metavar="NAME,...", help="an engine on each, as cuda:0,cuda:1")
    sub.add_argument(
        "--precision",
        choices=PRECISIONS,
        default="auto",
        help="number format of the networks (default: auto, as the processor multiplies fastest)",
    )
    sub.add_argument("--int8-text", action="store_true", help="hold the text encoder's weights in 8 bits")
    sub.add_argument("--name", metavar="NAME", help="of the model in the API (default: the cascade's)")
    sub.add_argument("--keys", type=Path, metavar="FILE", help="who may ask: lines of HOLDER KEY (default: everybody)")
    sub.add_argument("--rate", type=number, metavar="N", help="pictures a minute for each holder, or address")
    sub.add_argument("--queue", type=count, default=256, metavar="N", help="pictures that may wait (default: 256)")
    sub.add_argument("--max-n", type=count, default=10, metavar="N", help="pictures of a request (default: 10)")
    sub.add_argument("--max-steps", type=count, default=250, metavar="N", help="of a stage (default: 250)")
    sub.add_argument("--timeout", type=minutes, default=600.0, metavar="S", help="seconds for a request (default: 600)")
    sub.add_argument(
        "--drain",
        type=minutes,
        default=60.0,
        metavar="S",
        help="seconds for what was accepted, in the end (60)",
    )
    sub.add_argument(
        "--batch-pixels", type=count, metavar="N", help="in one call of a network (default: 2^18; on a GPU 2^22)"
    )
    sub.add_argument(
        "--hostname", action="append", default=[], metavar="NAME", help="by which it is called, behind a proxy"
    )
    sub.add_argument("--proxy", action="store_true", help="believe X-Forwarded-For from this machine")
    sub.add_argument("--cors", action="append", default=[], metavar="ORIGIN", help="whose pages may call, too")
    sub.add_argument(
        "--filter",
        metavar="MODULE",
        help="a Python module of yours with check_prompt(text) or check_picture(image), which return why they refuse",
    )


def serve(options: argparse.Namespace) -> None:
    from imagen.cli.commands import choose_device
    from imagen.serve import Limits, ServeConfig

    try:
        from imagen.serve.access import read_keys
        from imagen.serve.running import serve as run
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
        n=options.max_n,
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
        proxied=options.proxy,
        timeout=options.timeout,
        drain=options.drain,
        check_prompt=prompt,
        check_picture=picture,
    )
    run(options.cascade, config, devices=devices, precision=options.precision, int8_text=options.int8_text)


def _filters(name: str) -> tuple[Any, Any]:
    """The operator's own checks: their code, as they asked for."""
    import importlib
    import sys

    sys.path.insert(0, "")  # a file beside which the command is run
    try:
        module = importlib.import_module(name)
    except ImportError as error:
        raise UserError(f"--filter {name}: {error}; it must be a module that Python can import") from None
    prompt, picture = getattr(module, "check_prompt", None), getattr(module, "check_picture", None)
    if not callable(prompt) and not callable(picture):
        raise UserError(f"--filter {name} has neither a function check_prompt nor check_picture")
    return prompt, picture
