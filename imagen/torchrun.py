"""What torchrun tells each process it starts: which of how many it is, and where the first one listens."""

import os
from typing import NamedTuple

from imagen.errors import LIMIT, UserError

MOST_RANKS = 1_000_000


class Launch(NamedTuple):
    """This process among those that were started together."""

    rank: int  # 0 .. ranks - 1
    ranks: int
    local: int  # which process of its machine


def read_launch() -> Launch:
    """From RANK, WORLD_SIZE and LOCAL_RANK; one process alone without them.

    Raises UserError naming the variable if one is no number or out of range.
    """
    ranks = _number("WORLD_SIZE", "1", 1, MOST_RANKS)
    rank = _number("RANK", "0", 0, ranks - 1)
    return Launch(rank, ranks, _number("LOCAL_RANK", "0", 0, ranks - 1))


def check_rendezvous() -> None:
    """UserError unless MASTER_ADDR and MASTER_PORT say where the processes meet."""
    if not os.environ.get("MASTER_ADDR", "").strip():
        raise UserError("WORLD_SIZE says there are several processes, but MASTER_ADDR does not say where they meet")
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
