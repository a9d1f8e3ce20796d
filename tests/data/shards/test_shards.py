"""Test writing, indexing and reading shards."""

import io
import os
import pickle
import tarfile

import numpy as np
import pytest
from samples import read_sample

from imagen.data.shards.dataset import ShardedDataset, open_split
from imagen.data.shards.images import BadSample
from imagen.data.shards.index import index_path, index_shard
from imagen.data.shards.writer import ShardWriter
from imagen.errors import UserError


def write_shards(folder, count=10, per_shard=4):
    with ShardWriter(folder, per_shard) as writer:
        for i in range(count):
            writer.write({"__key__": f"k{i:03d}", "png": bytes([i]) * (700 * i), "txt": f"caption {i}\n".encode()})
    return ShardedDataset(folder)


def write_foreign(path, members):
    """Write a WebDataset tar as another program would: with owners, times, folders and extensions in any order."""
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size, info.mtime, info.uname = len(data), 1_600_000_000, "user"
            tar.addfile(info, io.BytesIO(data))


def assert_rejected(folder, *words):
    with pytest.raises(UserError) as error:
        ShardedDataset(folder)
    message = str(error.value)
    assert "\n" not in message and all(str(word) in message for word in words), message


def test_samples_are_read_as_written(tmp_path):
    data = write_shards(tmp_path)
    assert len(data) == 10 and data.shards == ["00000", "00001", "00002"] and data.sizes.tolist() == [4, 4, 2]
    for i in range(10):
        sample = read_sample(data, i)
        assert (sample.key, sample.caption) == (f"k{i:03d}", f"caption {i}")
        assert sample.members == {"png": bytes([i]) * (700 * i), "txt": f"caption {i}\n".encode()}
    assert data.shard_captions(1) == [[f"caption {i}"] for i in range(4, 8)]
    with pytest.raises(IndexError):
        read_sample(data, 10)
    with pytest.raises(BadSample, match="jpg"):
        data.read(0, "jpg")


def test_a_shard_is_a_plain_tar_and_equal_samples_give_equal_bytes(tmp_path):
    write_shards(tmp_path / "a")
    write_shards(tmp_path / "b")
    for name in ("00000.tar", "00002.tar"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    with tarfile.open(tmp_path / "a" / "00000.tar") as tar:
        assert tar.getnames()[:4] == ["k000.png", "k000.txt", "k001.png", "k001.txt"]
        assert {(m.mtime, m.uid, m.gid, m.uname) for m in tar} == {(0, 0, 0, "")}


def test_a_foreign_webdataset_tar_is_indexed_and_read_byte_for_byte(tmp_path):
    rng = np.random.default_rng(0)
    long = "d" * 150 + "/" + "é" * 60  # needs a pax header
    members = [
        ("000000001.jpg", rng.bytes(12_345)),
        ("000000001.txt", b"one"),
        ("000000001.json", b"{}"),
        ("._000000001.jpg", b"a Mac's resource fork"),
        ("README", b"no extension"),
        ("sub/dir.d/b.64.png", rng.bytes(511)),
        ("sub/dir.d/b.TXT", "zwei ü".encode()),
        ("empty.txt", b""),
        (f"{long}.jpg", rng.bytes(512)),
    ]
    write_foreign(tmp_path / "shard.with.dots-0.tar", members)
    index_shard(tmp_path / "shard.with.dots-0.tar")
    data = ShardedDataset(tmp_path)
    assert [data.key(i) for i in range(len(data))] == ["000000001", "sub/dir.d/b", "empty", long]
    contents = dict(members)
    assert read_sample(data, 0).members == {e: contents[f"000000001.{e}"] for e in ("jpg", "txt", "json")}
    assert read_sample(data, 1).members == {
        "64.png": contents["sub/dir.d/b.64.png"],
        "txt": contents["sub/dir.d/b.TXT"],
    }
    assert data.caption(1) == "zwei ü" and data.caption(2) == "" and data.caption(3) == ""
    assert data.read(3, "jpg") == contents[f"{long}.jpg"]


def test_indexing_reads_headers_only(tmp_path, monkeypatch):
    write_foreign(tmp_path / "0.tar", [("a.jpg", bytes(50_000_000)), ("b.jpg", bytes(50_000_000))])
    read = 0
    original = os.pread

    def counting(handle, size, offset):
        nonlocal read
        data = original(handle, size, offset)
        read += len(data)
        return data

    monkeypatch.setattr(os, "pread", counting)
    index_shard(tmp_path / "0.tar")
    assert 0 < read < 100_000


def test_splits_are_found(tmp_path):
    write_shards(tmp_path / "train", 6)
    write_shards(tmp_path / "heldout", 3)
    assert len(open_split(tmp_path)) == 6 and len(open_split(tmp_path, "heldout")) == 3
    assert len(open_split(tmp_path / "heldout")) == 3  # a folder of shards without splits is the split "train"
    with pytest.raises(UserError, match="heldout"):
        open_split(tmp_path / "train", "heldout")


def test_a_failing_writer_leaves_only_complete_shards(tmp_path):
    with pytest.raises(RuntimeError), ShardWriter(tmp_path, 4) as writer:
        for i in range(6):
            writer.write({"__key__": f"k{i}", "txt": b"x"})
        raise RuntimeError
    assert sorted(p.name for p in tmp_path.iterdir()) == ["00000.index.safetensors", "00000.tar"]
    with pytest.raises(UserError, match=f"{tmp_path} already contains shards"):
        ShardWriter(tmp_path)
    with ShardWriter(tmp_path, 4, overwrite=True) as writer:
        writer.write({"__key__": "new", "txt": b"y"})
    assert [ShardedDataset(tmp_path).key(0), len(ShardedDataset(tmp_path))] == ["new", 1]


def test_a_full_disk_is_a_user_error(tmp_path, monkeypatch):
    def full(*_args, **_kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tarfile.TarFile, "addfile", full)
    with pytest.raises(UserError, match=r"00000\.tar: No space left"), ShardWriter(tmp_path) as writer:
        writer.write({"__key__": "k", "txt": b"x"})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "sample", [{"__key__": "a.b", "txt": b""}, {"__key__": "", "txt": b""}, {"__key__": "a", "TXT": b""}]
)
def test_names_that_could_not_be_read_back_are_rejected(tmp_path, sample):
    with pytest.raises(ValueError), ShardWriter(tmp_path) as writer:
        writer.write(sample)


def test_errors_about_missing_files_name_them(tmp_path):
    assert_rejected(tmp_path / "absent", tmp_path / "absent")
    (tmp_path / "empty").mkdir()
    assert_rejected(tmp_path / "empty", "no shards")
    write_shards(tmp_path / "s")
    tar = tmp_path / "s" / "00001.tar"
    away = tar.rename(tmp_path / "away.tar")
    assert_rejected(tmp_path / "s", tar, "restore")
    away.rename(tar)
    index_path(tar).unlink()
    assert_rejected(tmp_path / "s", index_path(tar), "imagen data encode")


@pytest.mark.parametrize("keep", [5000, 1536, 100, 0])
def test_a_truncated_tar_is_rejected_by_the_dataset_and_the_indexer(tmp_path, keep):
    write_shards(tmp_path)
    tar = tmp_path / "00001.tar"
    os.truncate(tar, keep)
    assert_rejected(tmp_path, tar, "copy it again")
    with pytest.raises(UserError, match=r"00001\.tar is truncated"):
        index_shard(tar)


def test_a_tar_with_a_damaged_header_is_not_partly_indexed(tmp_path):
    write_shards(tmp_path)
    with open(tmp_path / "00001.tar", "r+b") as file:
        file.seek(4096)
        file.write(b"\x55" * 8192)
    with pytest.raises(UserError, match=r"00001\.tar"):
        index_shard(tmp_path / "00001.tar")


def test_a_broken_index_is_rejected(tmp_path):
    write_shards(tmp_path)
    index = tmp_path / "00001.index.safetensors"
    whole = index.read_bytes()
    for broken in (whole[:-1], whole[:20], b"", b"\xff" * 64, whole + b"x"):
        index.write_bytes(broken)
        assert_rejected(tmp_path, index)


def test_a_tar_truncated_after_opening_is_detected(tmp_path):
    data = write_shards(tmp_path)
    os.truncate(tmp_path / "00001.tar", 2000)
    with pytest.raises(UserError, match=r"00001\.tar"):
        data.read(7, "png")


def test_a_dataset_works_after_pickling_and_forking(tmp_path):
    data = write_shards(tmp_path)
    expected = [read_sample(data, i) for i in range(10)]
    copy = pickle.loads(pickle.dumps(data))
    assert [read_sample(copy, i) for i in range(10)] == expected
    child = os.fork()
    if child == 0:
        os._exit(0 if all(read_sample(data, i % 10) == expected[i % 10] for i in range(500)) else 1)
    assert all(read_sample(data, i % 10) == expected[i % 10] for i in range(500))
    assert os.waitpid(child, 0)[1] == 0


def test_a_million_samples_are_opened_without_reading_arrays(tmp_path):
    """200 shards of 5,000 samples. Opening may read headers, but no arrays."""
    with ShardWriter(tmp_path, 5000) as writer:
        for i in range(5000):
            writer.write({"__key__": f"{i:09d}", "txt": b"x"})
    for shard in range(1, 200):
        os.link(tmp_path / "00000.tar", tmp_path / f"{shard:05d}.tar")
        os.link(tmp_path / "00000.index.safetensors", tmp_path / f"{shard:05d}.index.safetensors")
    data = ShardedDataset(tmp_path)
    assert not any(index.mapping for index in data.indexes)
    assert len(data) == 1_000_000 and data.key(999_999) == "000004999"
    assert [shard for shard, index in enumerate(data.indexes) if index.mapping] == [199]
