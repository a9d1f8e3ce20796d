"""Read the environment variables that torchrun sets: rank, world size and rendezvous address."""

import os
from typing import NamedTuple

from imagen.errors import LIMIT, UserError

MOST_RANKS = 1_000_000


class Launch(NamedTuple):
    """Identify this process among those of the job."""

    rank: int  # 0 .. ranks - 1
    ranks: int  # world size
    local: int  # local rank, on this host


def read_launch() -> Launch:
    """Read RANK, WORLD_SIZE and LOCAL_RANK; without them the job is a single process.

    Raises UserError, naming the variable, if one is not a number or out of range.
    """
    ranks = _number("WORLD_SIZE", "1", 1, MOST_RANKS)
    rank = _number("RANK", "0", 0, ranks - 1)
    return Launch(rank, ranks, _number("LOCAL_RANK", "0", 0, ranks - 1))


def check_rendezvous() -> None:
    """Raise UserError unless MASTER_ADDR is set and MASTER_PORT is a port."""
    if not os.environ.get("MASTER_ADDR", "").strip():
        raise UserError("WORLD_SIZE is above 1, but MASTER_ADDR is not set; start the processes with torchrun")
    _number("MASTER_PORT", "", 1, 65535)


def _number(name: str, default: str, least: int, most: int) -> int:
    text = os.environ.get(name, default).strip()
    if not (text.isascii() and text.isdecimal() and len(text) < len(str(LIMIT)) and least <= int(text) <= most):
        allowed = f"from {least} to {most}" if most > least else f"{least}"
        raise UserError(
            f"the environment variable {name} is {text[:40]!r}; it must be a whole number, here {allowed}: "
            "start the processes with torchrun, or unset it"
        )
    return int(text)
