"""`--engine` and `--ray-address`: run in processes on this machine, or on a Ray cluster."""

import argparse
from collections.abc import Iterator
from contextlib import contextmanager

from imagen.cli.values import Choice
from imagen.errors import UserError


def add_engine(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--engine",
        type=Choice("local", "ray"),
        default="local",
        metavar="NAME",
        help="where to run: local, or ray for a Ray cluster (default: local)",
    )
    parser.add_argument(
        "--ray-address", metavar="HOST:PORT", help="the Ray cluster (default: RAY_ADDRESS, or else only this machine)"
    )


@contextmanager
def connected(options: argparse.Namespace) -> Iterator[bool]:
    """Connect to the Ray cluster within the block if the command uses one; yield whether it does."""
    if options.engine == "local":
        if options.ray_address is not None:
            raise UserError("--ray-address requires --engine ray")
        yield False
        return
    from imagen.data.build import cluster

    with cluster.connected(options.ray_address, options.workers):
        yield True
