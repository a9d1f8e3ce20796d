"""Read the colour profile of a JPEG 2000 file (ISO/IEC 15444-1, annex I), which Pillow ignores."""

from collections.abc import Iterator

_RESTRICTED, _ANY = 2, 3  # methods of a colour specification that contain an ICC profile


def icc_profile(data: bytes) -> bytes | None:
    """Return the first profile of the header, or None if there is none, as in a bare codestream."""
    for kind, start, end in _boxes(data, 0, len(data)):
        if kind == b"jp2c":
            return None
        if kind == b"jp2h":
            for inner, first, last in _boxes(data, start, end):
                if inner == b"colr" and last - first > 3 and data[first] in (_RESTRICTED, _ANY):
                    return data[first + 3 : last]
    return None


def _boxes(data: bytes, start: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """Yield (type, start, end) of the content of each box; stop at invalid data."""
    while start + 8 <= end:
        length, kind, header = int.from_bytes(data[start : start + 4], "big"), data[start + 4 : start + 8], 8
        if length == 1:  # a 64-bit length follows the type
            length, header = int.from_bytes(data[start + 8 : start + 16], "big"), 16
        stop = end if length == 0 else start + length
        if stop < start + header or stop > end:
            return
        yield kind, start + header, stop
        start = stop
