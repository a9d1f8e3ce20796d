"""Parse tar headers: find the members that tarfile finds, and never hang on false headers."""

import io
import random
import tarfile

import pytest

from imagen.data.shards.tar import DamagedTar, members


def scan(path):
    """Return the names, offsets and types of the members, and the reason if the tar is damaged."""
    listed = []
    with open(path, "rb") as file:
        try:
            listed += members(file)
        except DamagedTar as damage:
            return listed, str(damage)
    return listed, None


def add(tar, name, data=b"", kind=tarfile.REGTYPE, **fields):
    info = tarfile.TarInfo(name)
    info.size, info.type = len(data), kind
    for field, value in fields.items():
        setattr(info, field, value)
    tar.addfile(info, io.BytesIO(data))


def header(name=b"a.jpg", size=b"%011o\0" % 3, kind=b"0", magic=b"ustar\x0000", prefix=b""):
    block = name.ljust(100, b"\0") + b"0000644\0" * 3 + size.ljust(12, b"\0") + b"%011o\0" % 0 + b" " * 8 + kind
    block = (block.ljust(257, b"\0") + magic).ljust(345, b"\0") + prefix
    block = block.ljust(512, b"\0")
    return block[:148] + b"%06o\0 " % sum(block) + block[156:]


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_members_equal_those_that_tarfile_finds(tmp_path, format):
    rng = random.Random(format)
    with tarfile.open(tmp_path / "t.tar", "w", format=format) as tar:
        for i in range(60):
            long = "/".join(rng.choice(["d", "dir.d", "é" * 20]) for _ in range(rng.choice([1, 2, 6])))
            if format != tarfile.USTAR_FORMAT and i % 7 == 0:
                long = f"{long}/{'x' * 180}"
            kind, link = tarfile.REGTYPE, ""
            if i % 10 == 3:
                kind, link = rng.choice([(tarfile.DIRTYPE, ""), (tarfile.SYMTYPE, "y" * 150), (tarfile.FIFOTYPE, "")])
                link = link if format != tarfile.USTAR_FORMAT else link[:90]
            data = rng.randbytes(rng.choice([0, 1, 511, 512, 513, 3000])) if kind == tarfile.REGTYPE else b""
            add(tar, f"{long}/{i}.jpg", data, kind, linkname=link, uid=2**40 if format == tarfile.GNU_FORMAT else 0)
    listed, problem = scan(tmp_path / "t.tar")
    with tarfile.open(tmp_path / "t.tar") as tar:
        wanted = [(m.name, m.offset_data, m.size, m.isfile(), m.isdir()) for m in tar]
    got = [(m.name.decode().rstrip("/"), m.offset, m.size, m.kind == "a file", m.kind == "a folder") for m in listed]
    assert got == wanted and problem is None


def test_concatenated_tars_and_padding_are_read(tmp_path):
    for name in ("a", "b"):
        with tarfile.open(tmp_path / f"{name}.tar", "w") as tar:
            add(tar, f"{name}.jpg", b"data")
    both = (tmp_path / "a.tar").read_bytes() + (tmp_path / "b.tar").read_bytes()
    (tmp_path / "both.tar").write_bytes(both)
    listed, problem = scan(tmp_path / "both.tar")
    assert [m.name for m in listed] == [b"a.jpg", b"b.jpg"] and problem is None
    assert all(both[m.offset : m.offset + m.size] == b"data" for m in listed)
    (tmp_path / "both.tar").write_bytes(both + b"what a longer tar left here" * 50)
    assert scan(tmp_path / "both.tar") == (listed, None)


END = bytes(1024)
GOOD = header() + b"abc".ljust(512, b"\0")
LIES = {
    "a size of -1": header(size=b"-0000000001\0"),
    "a size of -512": header(size=b"-0000001000\0"),
    "-512 in binary": header(size=b"\xff" * 10 + b"\xfe\0"),
    "8 EB": header(size=b"\x80" + b"\x7f" + b"\xff" * 10),
    "8 EB, the largest int64": header(size=b"\x80\0\0\0" + (2**63 - 1).to_bytes(8, "big")),
    "no number": header(size=b"abc"),
    "more than the file holds": header(size=b"%011o\0" % 5000),
    "a long name of 8 GB": header(kind=b"L", size=b"77777777777\0"),
    "a long name of -512": header(kind=b"L", size=b"-0000001000\0"),
    "pax, -512": header(kind=b"x", size=b"-0000001000\0"),
    "pax with a size of -512": header(kind=b"x", size=b"%011o\0" % 13) + b"13 size=-512\n".ljust(512, b"\0") + GOOD,
    "pax with no size": header(kind=b"x", size=b"%011o\0" % 11) + b"11 size=xy\n".ljust(512, b"\0") + GOOD,
    "pax records of length 0": header(kind=b"x", size=b"%011o\0" % 9) + b"0 path=a\n".ljust(512, b"\0") + GOOD,
    "pax records of another length": header(kind=b"x", size=b"%011o\0" % 9) + b"99 path=a\n".ljust(512, b"\0") + GOOD,
    "a wrong checksum": header()[:148] + b"0000001\0" + header()[156:],
    "noise": random.Random(0).randbytes(512),
    "no end": b"",
}


@pytest.mark.parametrize("name", LIES)
def test_a_false_header_ends_the_tar(tmp_path, name):
    end = b"" if name == "no end" else END
    (tmp_path / "t.tar").write_bytes(GOOD + LIES[name] + end)
    listed, problem = scan(tmp_path / "t.tar")
    assert [(m.name, m.offset, m.size) for m in listed] == [(b"a.jpg", 512, 3)] and problem


def test_a_thousand_long_name_headers_and_unusual_members_are_read(tmp_path):
    long = header(kind=b"L", size=b"%011o\0" % 6) + b"b.jpg\0".ljust(512, b"\0")
    sparse = header(b"s.jpg", kind=b"S")
    more = sparse[:148] + b" " * 8 + sparse[156:482] + b"\x01" + sparse[483:]
    more = more[:148] + b"%06o\0 " % sum(more) + more[156:] + bytes(512) + b"abc".ljust(512, b"\0")
    odd = [header(b"%d.jpg" % i, b"%011o\0" % 7, kind) for i, kind in enumerate((b"1", b"2", b"3", b"4", b"6"))]
    old = header(b"folder/", b"%011o\0" % 0, b"\0", b"")
    (tmp_path / "t.tar").write_bytes(long * 2000 + GOOD + more + b"".join(odd) + old + GOOD + END)
    listed, problem = scan(tmp_path / "t.tar")
    assert problem is None and [m.name for m in listed[:2]] == [b"b.jpg", b"s.jpg"] and listed[-1].name == b"a.jpg"
    kinds = ["a sparse file", "a link", "a symbolic link", "a character device", "a block device", "a pipe", "a folder"]
    assert [m.kind for m in listed[1:-1]] == kinds


def test_random_bytes_anywhere_do_not_hang(tmp_path):
    rng = random.Random(1)
    with tarfile.open(tmp_path / "whole.tar", "w") as tar:
        for i in range(20):
            add(tar, f"{'n' * 120 if i % 3 == 0 else 'n'}{i}.jpg", rng.randbytes(rng.randrange(2000)))
    whole = (tmp_path / "whole.tar").read_bytes()
    for _ in range(300):
        data = bytearray(whole)
        for _ in range(rng.randrange(1, 30)):
            offset = rng.randrange(len(data))
            data[offset : offset + rng.randrange(1, 5)] = rng.randbytes(rng.randrange(1, 5))
        (tmp_path / "t.tar").write_bytes(data[: rng.randrange(len(data))])
        listed, _ = scan(tmp_path / "t.tar")
        assert all(m.offset >= 0 and m.size >= 0 and m.offset + m.size <= len(data) for m in listed)
