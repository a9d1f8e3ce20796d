"""Read the chunks of a PNG (W3C PNG, third edition, 5.3)."""

import struct
import zlib
from collections.abc import Iterator

from PIL import PngImagePlugin

SIGNATURE = b"\x89PNG\r\n\x1a\n"
_TEXT = (b"tEXt", b"zTXt", b"iTXt")
# Pillow's limit for the decompressed size of a chunk; colour profiles of printers exceed its default.
PngImagePlugin.MAX_TEXT_CHUNK = 2**24
# Text that may contain the orientation. It is removed too if it has _LONG bytes or more, since no real one is so long.
_NEEDED, _LONG = (b"XML:com.adobe.xmp\0", b"Raw profile type exif\0"), 2**20


def chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Yield (type, start, end) of each chunk up to IEND, including length and checksum; stop where the data end."""
    position = len(SIGNATURE)
    while position + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, position)
        kind, end = data[position + 4 : position + 8], position + 12 + length
        yield kind, position, min(end, len(data))
        if kind == b"IEND":
            return
        position = end


def bit_depth(data: bytes) -> int:
    """Return the bits per sample."""
    return data[24]


def without_text(data: bytes) -> bytes:
    """Remove text chunks, because Pillow rejects valid images with long ones, in which some programs store settings."""
    kept, rest = [], 0
    for kind, start, end in chunks(data):
        if kind in _TEXT and not (data.startswith(_NEEDED, start + 8) and end - start < _LONG):
            kept.append(data[rest:start])
            rest = end
    return data if not kept else b"".join([*kept, data[rest:]])


def check(data: bytes) -> None:
    """Check the checksums of all chunks. Raises ValueError naming the wrong one, or if the file is truncated."""
    kind = b""
    for kind, start, end in chunks(data):
        if zlib.crc32(memoryview(data)[start + 4 : end - 4]) != int.from_bytes(data[end - 4 : end], "big"):
            raise ValueError(f"the checksum of chunk {kind.decode('ascii', 'replace')} at byte {start} is wrong")
    if kind != b"IEND":
        raise ValueError("the file is truncated: it has no IEND chunk")
