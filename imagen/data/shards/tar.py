"""Read the headers of an untrusted tar: names and offsets of its members, and where it is damaged.

Python's `tarfile` trusts sizes, so a negative one makes it loop forever, and it reads names of any length. Here the
position only increases, no member extends past the end of the file, and the length of names is bounded. Names are
bytes.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

_BLOCK = 512
_LONGEST_NAME = 1 << 20  # maximum bytes of an extended header; real ones have hundreds
_SKIM = 1 << 20  # bytes per read when skipping zeros after an end mark
_FILES = (b"0", b"\0", b"7")  # type bytes of files; "7" is a "contiguous" file, stored like any other
_KINDS = {
    b"1": "a link",
    b"2": "a symbolic link",
    b"3": "a character device",
    b"4": "a block device",
    b"5": "a folder",
    b"6": "a pipe",
    b"S": "a sparse file",
}


@dataclass(frozen=True)
class Member:
    name: bytes
    kind: str  # "a file", "a folder", "a link", ...
    offset: int  # of its first byte
    size: int


class DamagedTar(Exception):
    """Raised for a header that cannot be read. Earlier members are complete. `name`: the truncated member, if known."""

    def __init__(self, reason: str, name: bytes | None = None):
        super().__init__(reason)
        self.name = name


def members(file: BinaryIO) -> Iterator[Member]:
    """Yield the members of a tar, or of several concatenated tars, in order; read only the headers.

    Raises DamagedTar at a damaged header, a member that extends past the end of the file, or a missing end mark. Data
    after an end mark that is not a header counts as padding.
    """
    handle, length = file.fileno(), os.fstat(file.fileno()).st_size
    position, ended = 0, False
    extended: dict[bytes, bytes] = {}  # fields of the extended headers before a member
    while True:
        block = os.pread(handle, _BLOCK, position)
        if block == bytes(_BLOCK):
            ended = True
            position = _next_header(handle, position, length)
            if position == length:
                return
            continue
        try:
            name, kind, size = _header(block, extended)
        except DamagedTar:
            if ended:
                return
            raise
        ended = False
        first = position + _BLOCK
        more = kind == b"S" and block[482]  # the map of a sparse file continues in the next block
        while more:
            more = os.pread(handle, _BLOCK, first).ljust(_BLOCK, b"\0")[504]
            first += _BLOCK
        if size > length - first:
            raise DamagedTar(f"{_shown(name)} has {size} bytes, more than remain in the file", name)
        position = first + -(-size // _BLOCK) * _BLOCK
        if kind in (b"x", b"X", b"L"):
            if size > _LONGEST_NAME:
                raise DamagedTar(f"an extended header of {size} bytes")
            text = os.pread(handle, size, first)
            extended |= _pax_records(text) if kind != b"L" else {b"path": text.rstrip(b"\0")}
        elif kind not in (b"g", b"K", b"V"):  # headers for all members, for link targets, for the tar
            yield Member(name, _kind(kind, name, extended), first, size)
            extended = {}


def _header(block: bytes, extended: dict[bytes, bytes]) -> tuple[bytes, bytes, int]:
    """Return name, type and size; raise DamagedTar if the block is not a header."""
    if len(block) < _BLOCK:
        raise DamagedTar("it ends without an end mark")
    checksum, stored = sum(block[:148]) + 8 * 32 + sum(block[156:]), _number(block[148:156])
    if stored != checksum and stored != checksum - 256 * sum(byte > 127 for byte in block[:148] + block[156:]):
        raise DamagedTar("a header is damaged")  # old programs sum signed bytes
    name, kind = block[:100].partition(b"\0")[0], block[156:157]
    if block[257:263] == b"ustar\0" and (prefix := block[345:500].partition(b"\0")[0]):
        name = prefix + b"/" + name
    size = _number(block[124:136])
    if kind not in (b"x", b"X", b"L", b"g", b"K"):
        name = extended.get(b"path", name)
        if b"size" in extended:
            size = _digits(extended[b"size"], 10)
    if kind in (b"1", b"2", b"3", b"4", b"5", b"6"):
        size = 0  # some programs store the size of a link's target
    if size < 0:
        raise DamagedTar(f"{_shown(name)} has the size {size}")
    return name, kind, size


def _number(field: bytes) -> int:
    """Parse octal digits, or a binary number if the first bit is set, as GNU tar writes large and negative numbers."""
    if field[0] & 0x80:
        return int.from_bytes(bytes([field[0] & 0x7F | (field[0] & 0x40) << 1]) + field[1:], "big", signed=True)
    return _digits(field.partition(b"\0")[0].strip() or b"0", 8)


def _digits(text: bytes, base: int) -> int:
    try:
        return int(text[:32], base)
    except ValueError:
        raise DamagedTar("a header is damaged") from None


def _pax_records(text: bytes) -> dict[bytes, bytes]:
    """Parse records "LENGTH KEY=VALUE\\n"."""
    records = {}
    while text:
        count, _, _ = text.partition(b" ")
        length = _digits(count, 10)
        record, text = text[len(count) + 1 : max(length, 1)], text[max(length, 1) :]
        key, equals, value = record.partition(b"=")
        if not equals or not value.endswith(b"\n"):
            raise DamagedTar("an extended header is damaged")
        records[key] = value[:-1]
    return records


def _kind(kind: bytes, name: bytes, extended: dict[bytes, bytes]) -> str:
    if kind not in _FILES:
        return _KINDS.get(kind, f"of the type {kind!r}")
    if kind == b"\0" and name.endswith(b"/"):  # a folder in the format of old programs
        return "a folder"
    return "a sparse file" if any(key.startswith(b"GNU.sparse.") for key in extended) else "a file"


def _next_header(handle: int, position: int, length: int) -> int:
    """Return the position of the first block from `position` on that is not all zeros, or `length`."""
    while position < length:
        data = os.pread(handle, _SKIM, position)
        if stripped := data.lstrip(b"\0"):
            return position + (len(data) - len(stripped)) // _BLOCK * _BLOCK
        position += len(data) or length
    return length


def _shown(name: bytes) -> str:
    return name[-100:].decode("utf-8", "replace")
