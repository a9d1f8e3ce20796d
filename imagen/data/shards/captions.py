"""Several captions of one picture: how a sample holds them, and which one a position of the stream is given.

`KEY.txt` holds the first caption, so that readers which know of one only go on to work. `KEY.json` beside it holds all
of them, {"captions": ["...", "..."]}; other fields of it mean nothing here.
"""

import json
from collections.abc import Iterable

import numpy as np

from imagen.data.loading.order import random_bits

FIELD = "captions"
MOST_BYTES = 1 << 24  # of a JSON member that is read for its captions; no list of captions is longer
_STREAM = 2  # of random bits: 0 is the order, 1 is crop and flip


def pack(captions: Iterable[str]) -> bytes:
    """The JSON member of a sample with these captions."""
    return json.dumps({FIELD: list(captions)}, ensure_ascii=False).encode()


def unpack(member: bytes) -> list[str]:
    """The texts of a JSON member's list of captions; [] if it has none or is no JSON: it may be anybody's."""
    if f'"{FIELD}"'.encode() not in member:  # img2dataset's: nothing need be parsed
        return []
    try:
        value = json.loads(member)
    except (ValueError, RecursionError):
        return []
    found = value.get(FIELD) if isinstance(value, dict) else None
    return [text for text in found if isinstance(text, str)] if isinstance(found, list) else []


def joined(first: str, others: Iterable[str]) -> list[str]:
    """`first`, then those of `others` that are not empty and not there yet, stripped.

    Halves of surrogate pairs, which JSON may hold and UTF-8 may not, become U+FFFD, as bad bytes of a txt member do.
    """
    plain = (text.encode("utf-16", "surrogatepass").decode("utf-16", "replace") for text in others)
    stripped = (text.removeprefix("\ufeff").strip() for text in plain)
    return list(dict.fromkeys([first, *(text for text in stripped if text)]))


def drawn(seed: int, position: int, count: int) -> int:
    """Which of `count` captions a position shows: a pure function, each equally often over many positions."""
    if count == 1:
        return 0
    return int((random_bits(seed, _STREAM, position, 0, 1)[0] >> np.uint64(11)) / 2**53 * count)
