"""Read the environment variables that torchrun sets for each process."""

import os
from typing import NamedTuple

from imagen.errors import LIMIT, UserError

MAX_WORLD_SIZE = 1_000_000


class Launch(NamedTuple):
    """The position of this process in a distributed job."""

    rank: int  # 0 .. world_size - 1
    world_size: int
    local_rank: int  # among the processes of this host


def read_launch() -> Launch:
    """Read RANK, WORLD_SIZE and LOCAL_RANK. Without them, this process is the only one.

    Raises UserError naming the variable if it is not a whole number or is out of range.
    """
    world_size = _read_int("WORLD_SIZE", "1", 1, MAX_WORLD_SIZE)
    rank = _read_int("RANK", "0", 0, world_size - 1)
    return Launch(rank, world_size, _read_int("LOCAL_RANK", "0", 0, world_size - 1))


def check_rendezvous() -> None:
    """Raise UserError unless MASTER_ADDR and MASTER_PORT give the address at which the first rank listens."""
    if not os.environ.get("MASTER_ADDR", "").strip():
        raise UserError(
            "WORLD_SIZE is above 1, but MASTER_ADDR is not set; start the processes with torchrun, or set it to the "
            "address of the first rank's host"
        )
    _read_int("MASTER_PORT", "", 1, 65535)


def _read_int(name: str, default: str, least: int, most: int) -> int:
    text = os.environ.get(name, default).strip()
    if not (text.isascii() and text.isdecimal() and len(text) < len(str(LIMIT)) and least <= int(text) <= most):
        allowed = f"from {least} to {most}" if most > least else f"{least}"
        raise UserError(
            f"the environment variable {name} is {text[:40]!r}; it must be a whole number, here {allowed}: "
            "start the processes with torchrun, or unset it"
        )
    return int(text)
