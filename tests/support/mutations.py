"""Mutate inputs at random: JSON values, bytes, lines, tar headers and PNG chunks. A `Random` determines the result."""

import copy
import json
import struct
import zlib
from random import Random
from typing import Any

# Placeholders for numbers that Python's JSON writer cannot write.
_RAW = {"@1e400@": "1e400", "@-1e400@": "-1e400", "@nan@": "NaN", "@inf@": "Infinity", "@long@": "9" * 5000}
EXTREMES: tuple[Any, ...] = (
    *(0, -1, 1, 2, 3, 7, 255, 65_536, 2**31 - 1, 2**31, 2**32, 2**63 - 1, 2**63, 10**30, -(10**30), 10**9, 10**5),
    *(
        0.0,
        -0.0,
        0.5,
        1.5,
        1e-320,
        1e39,
        1e308,
        -1e308,
        *_RAW,
        True,
        False,
        None,
        "",
        "a",
        "none",
        "../x",
        "/etc/passwd",
    ),
    *("\ud800", "a\0b", "\u2028", "\u202e", "x" * 100_000, "cat " * 30_000, [], {}, [[]], [0], [None], {"a": 1}),
)


def changed_json(rng: Random, value: Any) -> bytes:
    """Return `value` as JSON after one to three changes of its structure and, occasionally, of its text."""
    value = copy.deepcopy(value)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        value = _changed(rng, value)
    text = json.dumps(value, ensure_ascii=rng.random() < 0.9)
    for mark, raw in _RAW.items():
        text = text.replace(json.dumps(mark), raw)
    data = text.encode("utf-8", "surrogatepass")
    return changed_bytes(rng, data) if rng.random() < 0.15 else data


def _paths(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the paths of all nested values, about 500 at most."""
    found = [path]
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        found += _paths(inner, (*path, key)) if len(found) < 500 else []
    return found


def _changed(rng: Random, value: Any) -> Any:
    paths = _paths(value)
    path = rng.choice(paths[1:] or paths)
    if not path:
        return rng.choice(EXTREMES)
    owner = value
    for key in path[:-1]:
        owner = owner[key]
    last, kind = path[-1], rng.randrange(10)
    if kind < 5:
        owner[last] = rng.choice(EXTREMES)
    elif kind == 5:
        del owner[last]
    elif kind == 6:
        owner[last] = nested(rng, rng.choice((50, 90, 101, 300)))  # `deep_text` goes deeper
    elif kind == 7:
        owner[last] = [owner[last]] * rng.choice((2, 3, 1000, 100_000))
    elif kind == 8 and isinstance(owner, dict):
        owner[rng.choice((f"{last}s", str(last).upper(), "", "x" * 1000, "__class__"))] = owner.pop(last)
    else:
        other = value
        for key in rng.choice(paths):
            other = other[key]
        owner[last] = copy.deepcopy(other)
    return value


def nested(rng: Random, depth: int) -> Any:
    """Return lists and objects nested to this depth."""
    value: Any = 1
    for _ in range(depth):
        value = [value] if rng.random() < 0.5 else {"a": value}
    return value


def deep_text(rng: Random) -> bytes:
    """Return JSON with a nesting of 500 to 100,000 levels, sometimes unclosed."""
    depth = rng.choice((500, 990, 5000, 100_000))
    opening, closing = rng.choice((("[", "]"), ('{"a": ', "}")))
    return (opening * depth + "1" + closing * (depth if rng.random() < 0.7 else 0)).encode()


TOKENS = (
    *(b"", b"\0", b"\n", b"\r", b"\r\n", b'"', b'""', b"'", b"\\", b",", b"\t", b";", b"{", b"}", b"[", b"]", b"\xff"),
    *(b"\xfe\xff", b"\xef\xbb\xbf", b"\xe2\x80\xa8", b"\xc2\x85", b"\x0c", b"\xed\xa0\x80", b"\x1b[2J", b"9" * 5000),
    *(b"a" * 200_000, b"cat " * 50_000, b"-1", b"1e400", b"NaN", b"null", b"../../x", b"<script>", b"%s%n"),
)


def changed_bytes(rng: Random, data: bytes, times: int | None = None) -> bytes:
    """Flip bits, overwrite bytes with extreme values, insert tokens, and delete, repeat or move slices."""
    found = bytearray(data)
    for _ in range(times or rng.choice((1, 1, 2, 4, 16))):
        at, kind = rng.randrange(len(found) + 1), rng.randrange(8)
        size = rng.choice((1, 2, 4, 8, 64, 512))
        if kind == 0 and at < len(found):
            found[at] ^= 1 << rng.randrange(8)
        elif kind in (1, 2) and at < len(found):
            width = rng.choice((1, 2, 4, 8))
            extreme = rng.choice((b"\0", b"\xff", b"\x7f" + b"\xff" * 7, b"\x80" + b"\0" * 7, b"\xff" * 7 + b"\x7f"))
            found[at : at + width] = (extreme * width)[:width]
        elif kind == 3:
            found[at:at] = rng.choice(TOKENS)
        elif kind == 4:
            del found[at : at + size]
        elif kind == 5:
            found[at:at] = found[at : at + size] * rng.choice((1, 2, 50))
        elif kind == 6:
            other = rng.randrange(len(found) + 1)
            found[at : at + size] = found[other : other + size]
        elif rng.random() < 0.5:
            del found[at:]
    return bytes(found)


def changed_lines(rng: Random, data: bytes) -> bytes:
    """Repeat, delete, join or shuffle lines, or change bytes of a line."""
    lines = data.split(b"\n")
    for _ in range(rng.choice((1, 1, 2, 3))):
        at, kind = rng.randrange(len(lines)), rng.randrange(5)
        if kind == 0:
            lines[at:at] = [lines[at]] * rng.choice((1, 3, 300))
        elif kind == 1 and len(lines) > 1:
            del lines[at]
        elif kind == 2:
            lines[at] = lines[at] + lines[rng.randrange(len(lines))]
        elif kind == 3:
            rng.shuffle(lines)
        else:
            lines[at] = changed_bytes(rng, lines[at]) if rng.random() < 0.9 else deep_text(rng)
    return b"\n".join(lines)


# --- tars ---

_FIELDS = {"name": (0, 100), "mode": (100, 8), "uid": (108, 8), "size": (124, 12), "mtime": (136, 12)}
_FIELDS |= {"sum": (148, 8), "type": (156, 1), "link": (157, 100), "magic": (257, 8), "prefix": (345, 155)}
_SIZES = (
    *(
        b"00000000000\0",
        b"77777777777\0",
        b"-0000001000\0",
        b"\x80" + b"\xff" * 11,
        b"\xff" * 12,
        b"\xff" * 10 + b"\xfe\0",
    ),
    *(
        b"\x80\0\0\0\x7f\xff\xff\xff\xff\xff\xff\xff",
        b"            ",
        b"00000001000\0",
        b"99999999999\0",
        b"00000000777 ",
    ),
)
_NAMES = (
    *(
        b"../../x.jpg",
        b"/etc/x.jpg",
        b"caf\xe9.jpg",
        b"\xff\xfe.png",
        b"",
        b".",
        b"a/b/c/000.jpg",
        b"000.JPG",
        b"0.0.0.jpg",
    ),
    *(b"000.txt", b"\n.jpg", b"\x1b[2J.png", b".jpg", b"000.", b"x" * 100, b"000.json", b"000.cls", b"a\\b.jpg"),
)


def changed_tar(rng: Random, data: bytes) -> bytes:
    """Change a header field and fix the checksum, repeat or delete members, or change arbitrary bytes."""
    found = bytearray(data)
    headers = [at for at in range(0, len(found) - 511, 512) if found[at + 257 : at + 262] == b"ustar"]
    for _ in range(rng.choice((1, 1, 2, 3))):
        at, kind = rng.choice(headers or [0]), rng.randrange(8)
        if kind < 5:
            _set_field(rng, found, at)
        elif kind == 5:
            found = bytearray(changed_bytes(rng, bytes(found)))
        elif kind == 6:
            begin, end = rng.choice(headers or [0]), rng.choice([*headers, len(found)])
            found[at:at] = found[begin:end]
        else:
            del found[at : at + 512 * rng.choice((1, 2, 5))]
    return bytes(found)


def _set_field(rng: Random, tar: bytearray, at: int) -> None:
    name = rng.choice(("name", "size", "size", "type", "type", "prefix", *_FIELDS))
    begin, width = _FIELDS[name]
    if name == "size":
        value = rng.choice(_SIZES)
    elif name == "type":
        value = rng.choice((*b"01234567xgLKSVDMNAX", 0, 255)).to_bytes(1, "big")
    elif name in ("name", "link", "prefix"):
        value = rng.choice(_NAMES)
    else:
        value = rng.randbytes(width)
    tar[at + begin : at + begin + width] = value[:width].ljust(width, b"\0")
    if name != "sum" and rng.random() < 0.9:
        header = tar[at : at + 512]
        header[148:156] = b" " * 8
        tar[at + 148 : at + 156] = b"%06o\0 " % sum(header)


# --- PNG ---


def chunks(data: bytes) -> list[tuple[bytes, bytes]]:
    """Return (kind, body) of each chunk of a valid PNG."""
    found, at = [], 8
    while at + 8 <= len(data):
        (size,) = struct.unpack(">I", data[at : at + 4])
        found.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + size]))
        at += 12 + size
    return found


def png(parts: list[tuple[bytes, bytes]]) -> bytes:
    """Return a PNG of these (kind, body) chunks."""
    body = b"".join(struct.pack(">I", len(b)) + k + b + struct.pack(">I", zlib.crc32(k + b)) for k, b in parts)
    return b"\x89PNG\r\n\x1a\n" + body


def changed_png(rng: Random, data: bytes) -> bytes:
    """Change a chunk and fix its checksum, or repeat or delete chunks."""
    parts = chunks(data)
    at, kind = rng.randrange(len(parts)), rng.randrange(5)
    if kind < 3:
        if rng.random() < 0.4:
            at = 0  # the header
        parts[at] = (parts[at][0], changed_bytes(rng, parts[at][1], 1))
    elif kind == 3:
        parts[at:at] = [parts[rng.randrange(len(parts))]] * rng.choice((1, 2, 100))
    else:
        del parts[at]
    return png(parts)
