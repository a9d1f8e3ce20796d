"""The headers of a tar that nobody vouches for: names and places of its members, and where it stops being a tar.

Python's `tarfile` trusts sizes (a negative one sends it back, for ever) and reads long names of any length. Here the
place only grows, no member ends behind the file, and a long name is read up to a bound. Names stay bytes.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

_BLOCK = 512
_LONGEST_NAME = 1 << 20  # bytes of an extended header; real ones have hundreds
_SKIM = 1 << 20  # bytes read at once to find what follows an end
_FILES = (b"0", b"\0", b"7")  # by the type byte; "7" is a "contiguous" file, stored like any other
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
    """No header can be read here; what came before it is whole. `name` is a member that does not end in the file."""

    def __init__(self, reason: str, name: bytes | None = None):
        super().__init__(reason)
        self.name = name


def members(file: BinaryIO) -> Iterator[Member]:
    """The members of a tar in order, also of several tars one after another; only headers are read.

    Raises DamagedTar where a header is damaged, a member ends behind the file, or the end mark is missing. What
    follows an end mark and is no header is padding.
    """
    handle, length = file.fileno(), os.fstat(file.fileno()).st_size
    place, ended = 0, False
    extended: dict[bytes, bytes] = {}  # what the headers before a member say of it
    while True:
        block = os.pread(handle, _BLOCK, place)
        if block == bytes(_BLOCK):
            ended = True
            place = _next_header(handle, place, length)
            if place == length:
                return
            continue
        try:
            name, kind, size = _header(block, extended)
        except DamagedTar:
            if ended:
                return
            raise
        ended = False
        first = place + _BLOCK
        more = kind == b"S" and block[482]  # the map of a sparse file, in blocks of its own
        while more:
            more = os.pread(handle, _BLOCK, first).ljust(_BLOCK, b"\0")[504]
            first += _BLOCK
        if size > length - first:
            raise DamagedTar(f"{_shown(name)} has {size} bytes, more than are left in the file", name)
        place = first + -(-size // _BLOCK) * _BLOCK
        if kind in (b"x", b"X", b"L"):
            if size > _LONGEST_NAME:
                raise DamagedTar(f"a name or its like of {size} bytes")
            text = os.pread(handle, size, first)
            extended |= _pax_records(text) if kind != b"L" else {b"path": text.rstrip(b"\0")}
        elif kind not in (b"g", b"K", b"V"):  # of all members, of links' targets, of the whole tar
            yield Member(name, _kind(kind, name, extended), first, size)
            extended = {}


def _header(block: bytes, extended: dict[bytes, bytes]) -> tuple[bytes, bytes, int]:
    """Name, type and size; DamagedTar if the block is no header."""
    if len(block) < _BLOCK:
        raise DamagedTar("it ends without an end mark")
    summed, told = sum(block[:148]) + 8 * 32 + sum(block[156:]), _number(block[148:156])
    if told != summed and told != summed - 256 * sum(byte > 127 for byte in block[:148] + block[156:]):
        raise DamagedTar("a header is damaged")  # old programs summed signed bytes
    name, kind = block[:100].partition(b"\0")[0], block[156:157]
    if block[257:263] == b"ustar\0" and (prefix := block[345:500].partition(b"\0")[0]):
        name = prefix + b"/" + name
    size = _number(block[124:136])
    if kind not in (b"x", b"X", b"L", b"g", b"K"):
        name = extended.get(b"path", name)
        if b"size" in extended:
            size = _digits(extended[b"size"], 10)
    if kind in (b"1", b"2", b"3", b"4", b"5", b"6"):
        size = 0  # some programs store the size of what a link leads to
    if size < 0:
        raise DamagedTar(f"{_shown(name)} has the size {size}")
    return name, kind, size


def _number(field: bytes) -> int:
    """Octal digits, or a binary number where the first bit is set, as GNU tar writes large and negative ones."""
    if field[0] & 0x80:
        return int.from_bytes(bytes([field[0] & 0x7F | (field[0] & 0x40) << 1]) + field[1:], "big", signed=True)
    return _digits(field.partition(b"\0")[0].strip() or b"0", 8)


def _digits(text: bytes, base: int) -> int:
    try:
        return int(text[:32], base)
    except ValueError:
        raise DamagedTar("a header is damaged") from None


def _pax_records(text: bytes) -> dict[bytes, bytes]:
    """Records "LENGTH KEY=VALUE\\n"."""
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
    if kind == b"\0" and name.endswith(b"/"):  # before there was a type for folders
        return "a folder"
    return "a sparse file" if any(key.startswith(b"GNU.sparse.") for key in extended) else "a file"


def _next_header(handle: int, place: int, length: int) -> int:
    """The place of the first block from `place` on that is not all zeros, or `length`."""
    while place < length:
        data = os.pread(handle, _SKIM, place)
        if stripped := data.lstrip(b"\0"):
            return place + (len(data) - len(stripped)) // _BLOCK * _BLOCK
        place += len(data) or length
    return length


def _shown(name: bytes) -> str:
    return name[-100:].decode("utf-8", "replace")
