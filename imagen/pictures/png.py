"""Read the chunks of a PNG (W3C PNG, third edition, 5.3)."""

import struct
import zlib
from collections.abc import Iterator

from PIL import PngImagePlugin

SIGNATURE = b"\x89PNG\r\n\x1a\n"
_TEXT = (b"tEXt", b"zTXt", b"iTXt")
# Text that says how to turn the picture; longer than any real one, it is left out, too.
# Pillow's limit for what a chunk holds once it is decompressed; colour profiles of printers are longer than its own.
PngImagePlugin.MAX_TEXT_CHUNK = 2**24
_NEEDED, _LONG = (b"XML:com.adobe.xmp\0", b"Raw profile type exif\0"), 2**20


def chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Yield (type, start, end) of every chunk up to IEND, length and checksum included; ends where the data do."""
    position = len(SIGNATURE)
    while position + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, position)
        kind, end = data[position + 4 : position + 8], position + 12 + length
        yield kind, position, min(end, len(data))
        if kind == b"IEND":
            return
        position = end


def without_text(data: bytes) -> bytes:
    """Leave out text chunks: Pillow refuses good pictures for long ones, such as programs store their settings in."""
    kept, rest = [], 0
    for kind, start, end in chunks(data):
        if kind in _TEXT and not (data.startswith(_NEEDED, start + 8) and end - start < _LONG):
            kept.append(data[rest:start])
            rest = end
    return data if not kept else b"".join([*kept, data[rest:]])


def check(data: bytes) -> None:
    """Compare every chunk's checksum. ValueError naming the chunk that differs, or if the last one is not there."""
    kind = b""
    for kind, start, end in chunks(data):
        if zlib.crc32(memoryview(data)[start + 4 : end - 4]) != int.from_bytes(data[end - 4 : end], "big"):
            raise ValueError(f"the checksum of chunk {kind.decode('ascii', 'replace')} at byte {start} is wrong")
    if kind != b"IEND":
        raise ValueError("the file is truncated: it has no chunk IEND")
