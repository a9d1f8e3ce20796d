"""Group tar members into samples: captions are never mixed up, and every other member is reported."""

import io
import os
import tarfile

import pytest

from imagen.data.shards.dataset import ShardedDataset
from imagen.data.shards.index import index_shard
from imagen.data.shards.tar_samples import scan_tar
from imagen.errors import UserError


def write(path, names, kinds=()):
    """Write a tar in which each member contains its own number."""
    with tarfile.open(path, "w") as tar:
        for number, name in enumerate(names):
            info = tarfile.TarInfo("x")
            info.name = name
            info.type = dict(kinds).get(name, tarfile.REGTYPE)
            data = str(number).encode() if info.type == tarfile.REGTYPE else b""
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def sample_members(path):
    """Return {key: {extension: number of the member}}."""
    data = path.read_bytes()
    return {
        key: {extension: int(data[first : first + size]) for extension, (first, size) in places.items()}
        for key, places in scan_tar(path).samples.items()
    }


def invalid_members(path):
    return [(member.key, member.reason) for member in scan_tar(path).invalid_members]


@pytest.mark.parametrize(
    "names, wanted, repeated",
    [
        # Complete samples of one name are all samples.
        ("a.jpg a.txt b.jpg b.txt a.jpg a.txt", {"a": (0, 1), "b": (2, 3), "a~2": (4, 5)}, []),
        ("a.jpg a.txt a.JPG a.TXT", {"a": (0, 1), "a~2": (2, 3)}, []),
        ("a~2.jpg a~2.txt a.jpg a.txt a.jpg a.txt", {"a~2": (0, 1), "a": (2, 3), "a~2~": (4, 5)}, []),
        # Members may be anywhere and in any order.
        ("a.jpg b.txt b.jpg a.txt", {"a": (0, 3), "b": (1, 2)}, []),
        # If the order is ambiguous there is no sample: both images are rejected.
        ("a.jpg a.txt a.jpg b.jpg b.txt", {"b": (3, 4)}, ["a", "a"]),
        ("a.jpg a.txt a.JPG b.jpg b.txt", {"b": (3, 4)}, ["a", "a"]),
        ("a.jpg a.jpg a.txt a.txt", {}, ["a", "a"]),
        ("a.jpg a.txt a.txt a.jpg", {}, ["a", "a"]),
        ("a.txt a.jpg b.jpg a.txt", {"b": (2,)}, ["a", "a"]),
        # Dots in names: pairs are samples, and further images and maps belong to theirs.
        ("v1.0.jpg v1.0.txt v1.1.gif v1.1.txt", {"v1.0": (0, 1), "v1.1": (2, 3)}, []),
        ("v1.jpg v1.txt v1.B.jpg v1.B.txt", {"v1": (0, 1), "v1.B": (2, 3)}, []),
        ("v.0.jpg v.0.json", {"v.0": (0, 1)}, []),
        ("a.64.png a.256.png a.txt", {"a": (0, 1, 2)}, []),
        ("a.64.png a.256.png", {"a": (0, 1)}, []),
        ("a.jpg a.json a.seg.png a.seg.json", {"a": (0, 1, 2, 3)}, []),
    ],
)
def test_members_of_one_name_form_samples(tmp_path, names, wanted, repeated):
    write(tmp_path / "t.tar", names.split())
    got = {key: tuple(sorted(places.values())) for key, places in sample_members(tmp_path / "t.tar").items()}
    assert got == wanted and list(got) == list(wanted)
    assert invalid_members(tmp_path / "t.tar") == [(key, "repeated key") for key in repeated]


def test_members_that_are_no_files_or_have_no_extension_are_reported(tmp_path, caplog):
    kinds = {
        "a.jpg": tarfile.LNKTYPE,
        "c.jpg": tarfile.FIFOTYPE,
        "d.jpg": tarfile.CHRTYPE,
        "dir.d": tarfile.DIRTYPE,
        "README": tarfile.SYMTYPE,
    }
    names = ["a.jpg", "a.txt", "b.jpg", "b.txt", "c.jpg", "d.jpg", "dir.d", "README", "LICENSE", "._b.jpg", ".DS_Store"]
    write(tmp_path / "t.tar", names, kinds.items())
    scan = scan_tar(tmp_path / "t.tar")
    assert sample_members(tmp_path / "t.tar") == {"a": {"txt": 1}, "b": {"jpg": 2, "txt": 3}}
    assert scan.non_files == {"a": "a.jpg is a link, not a file"}
    assert {(s.key, s.reason, s.detail) for s in scan.invalid_members} == {
        ("LICENSE", "broken row", "the member's name has no extension; members are named KEY.EXT"),
        ("c", "unreadable file", "c.jpg is a pipe, not a file"),
        ("d", "unreadable file", "d.jpg is a character device, not a file"),
        ("README", "unreadable file", "README is a symbolic link, not a file"),
    }
    index_shard(tmp_path / "t.tar")
    assert "4 members belong to no sample (LICENSE: broken row, ...); `imagen data build` lists them" in caplog.text


def test_names_that_are_not_utf8_are_valid(tmp_path):
    names = [
        os.fsdecode(name) for name in (b"caf\xe9.jpg", b"caf\xe9.txt", b"caf\xe8.jpg", b"\xff/x.jpg", b"n\n/x.jpg")
    ]
    write(tmp_path / "t.tar", names)
    index_shard(tmp_path / "t.tar")
    data = ShardedDataset(tmp_path)
    assert [data.key(i) for i in range(len(data))] == ["caf\\xe9", "caf\\xe8", "\\xff/x", "n\n/x"]
    assert [data.caption(i) for i in range(4)] == ["1", "", "", ""]
    assert [data.read(i, "jpg") for i in range(4)] == [b"0", b"2", b"3", b"4"]


def test_files_that_are_not_tars_are_rejected(tmp_path):
    os.mkfifo(tmp_path / "pipe.tar")  # a pipe without a writer
    (tmp_path / "folder.tar").mkdir()
    for name, words in (("pipe", "a pipe, not a file"), ("folder", "a folder, not a file"), ("none", "is missing")):
        with pytest.raises(UserError, match=words):
            scan_tar(tmp_path / f"{name}.tar")
