"""`--engine` and `--ray-address`: the processes of this machine, or a Ray cluster."""

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
        help="local, or ray: a Ray cluster (default: local)",
    )
    parser.add_argument(
        "--ray-address", metavar="HOST:PORT", help="of the cluster (default: RAY_ADDRESS, else Ray on this machine)"
    )


@contextmanager
def connected(options: argparse.Namespace) -> Iterator[bool]:
    """Connect to the Ray cluster within the block if the command uses one; yields whether it does."""
    if options.engine == "local":
        if options.ray_address is not None:
            raise UserError("--ray-address belongs to --engine ray")
        yield False
        return
    from imagen.data.build import cluster

    with cluster.connected(options.ray_address, options.workers):
        yield True
