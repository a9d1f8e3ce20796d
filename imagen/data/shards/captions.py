"""Store several captions per image, and choose one for each position of the stream.

`KEY.txt` contains the first caption, so readers that expect a single one continue to work. `KEY.json` contains all of
them, {"captions": ["...", "..."]}; its other fields are ignored.
"""

import json
from collections.abc import Iterable

import numpy as np

from imagen.data.loading.order import random_bits

FIELD = "captions"
MOST_BYTES = 1 << 24  # maximum size of a JSON member that is read for its captions
_STREAM = 2  # stream of random bits: 0 is for the order, 1 for crop and flip


def pack(captions: Iterable[str]) -> bytes:
    """Return the JSON member of a sample with these captions."""
    return json.dumps({FIELD: list(captions)}, ensure_ascii=False).encode()


def unpack(member: bytes) -> list[str]:
    """Return the strings in a JSON member's list of captions; [] without such a list or if the member is not JSON."""
    if f'"{FIELD}"'.encode() not in member:  # such as img2dataset's metadata: skips parsing
        return []
    try:
        value = json.loads(member)
    except (ValueError, RecursionError):
        return []
    found = value.get(FIELD) if isinstance(value, dict) else None
    return [text for text in found if isinstance(text, str)] if isinstance(found, list) else []


def merge(first: str, others: Iterable[str]) -> list[str]:
    """Return `first` and the distinct non-empty `others`, stripped.

    Unpaired surrogates, which JSON allows and UTF-8 does not, become U+FFFD, as invalid bytes of a txt member do.
    """
    plain = (text.encode("utf-16", "surrogatepass").decode("utf-16", "replace") for text in others)
    stripped = (text.removeprefix("\ufeff").strip() for text in plain)
    return list(dict.fromkeys([first, *(text for text in stripped if text)]))


def choose(seed: int, position: int, count: int) -> int:
    """Choose one of `count` captions for a position: a pure function, uniform over positions."""
    if count == 1:
        return 0
    return int((random_bits(seed, _STREAM, position, 0, 1)[0] >> np.uint64(11)) / 2**53 * count)
