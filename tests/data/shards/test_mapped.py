"""Test memory-mapped safetensors files."""

import os

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from safetensors.torch import safe_open

from imagen.data.shards import mapped
from imagen.data.shards.mapped import MappedTensors
from imagen.errors import UserError
from imagen.tensors import save_tensors

VALUES = {"a": np.arange(24, dtype=np.int64).reshape(6, 4), "b": np.arange(7, dtype=np.uint16)}
ARRAYS = {
    "bytes": np.arange(5, dtype=np.uint8),
    "bits": np.arange(12, dtype=np.uint16).reshape(3, 4)[:, ::2],  # not contiguous
    "wide": np.array([2**63, 1], np.uint64),
    "none": np.empty((0, 7), np.int32),
}
METADATA = {"z": "ä", "a": "1", "m": '"'}


def test_safetensors_reads_our_files(tmp_path):
    path = tmp_path / "x.safetensors"
    save_tensors(ARRAYS, path, METADATA)
    with safe_open(path, "np") as file:
        assert file.metadata() == METADATA
    read, mapped = load_file(path), MappedTensors(path, "")
    assert read.keys() == ARRAYS.keys() and mapped.metadata == METADATA
    for name, array in ARRAYS.items():
        for found in (read[name], mapped[name]):
            assert found.dtype == array.dtype and np.array_equal(found, array)


def test_equal_contents_give_equal_bytes(tmp_path):
    for name, turn in (("a", list), ("b", reversed)):
        save_tensors(dict(turn(ARRAYS.items())), tmp_path / name, dict(turn(METADATA.items())))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_rows_equal_those_of_the_array(tmp_path):
    save_file(VALUES, tmp_path / "x")
    tensors = MappedTensors(tmp_path / "x", "copy it again")
    for name, first, last in (("a", 0, 6), ("a", 2, 3), ("a", 4, 4), ("b", 1, 7)):
        found = tensors.rows(name, first, last)
        assert found.dtype == VALUES[name].dtype and np.array_equal(found, VALUES[name][first:last])
        assert np.array_equal(tensors[name][first:last], found)
    with pytest.raises(UserError, match="no tensor 'c'; copy it again"):
        tensors.rows("c", 0, 1)
    os.truncate(tmp_path / "x", os.path.getsize(tmp_path / "x") - 8)
    with pytest.raises(UserError, match="truncated; copy it again"):
        tensors.rows("a", 0, 6), tensors.rows("b", 0, 7)


def test_few_files_stay_mapped_and_all_can_be_read_again(tmp_path, monkeypatch):
    monkeypatch.setattr(mapped, "MAX_MAPS", 3)
    monkeypatch.setattr(mapped, "open_maps", mapped.deque())
    for i in range(8):
        save_file({"a": VALUES["a"] + i}, tmp_path / f"{i}")
    files = [MappedTensors(tmp_path / f"{i}", "") for i in range(8)]
    first = files[0]["a"]
    for _ in range(2):
        for i, file in enumerate(files):
            assert np.array_equal(file["a"], VALUES["a"] + i)
            assert sum(other.mapping is not None for other in files) <= 3
    assert np.array_equal(first, VALUES["a"])  # a view remains valid after its map is released


ENTRY = '{"dtype": "I64", "shape": [2], "data_offsets": [0, 16]}'


@pytest.mark.parametrize(
    "header",
    [
        "[" * 100_000,
        "5",
        '{"a": 5}',
        '{"a": {}}',
        ENTRY.replace("{", '{"a": {"more": 1, ').replace("}", "}}"),
        '{"a": ' + ENTRY.replace("I64", "F32") + "}",
        '{"a": ' + ENTRY.replace("[2]", "[3]") + "}",
        '{"a": ' + ENTRY.replace("[2]", "[-2]") + "}",
        '{"a": ' + ENTRY.replace("[2]", '["2"]') + "}",
        '{"a": ' + ENTRY.replace("[0, 16]", "[16, 0]") + "}",
        '{"a": ' + ENTRY.replace("[0, 16]", "[-16, 0]") + "}",
        '{"a": ' + ENTRY.replace("[0, 16]", "[0]") + "}",
        '{"a": ' + ENTRY.replace("I64", '", "dtype": []') + "}",
    ],
)
def test_inconsistent_headers_are_corrupt(tmp_path, header):
    data = header.encode()
    (tmp_path / "x").write_bytes(len(data).to_bytes(8, "little") + data + bytes(16))
    with pytest.raises(UserError, match=r"x is corrupt \(not a safetensors header\); make it again"):
        MappedTensors(tmp_path / "x", "make it again")


def test_a_consistent_header_is_read(tmp_path):
    data = ('{"a": ' + ENTRY + "}").encode()
    (tmp_path / "x").write_bytes(len(data).to_bytes(8, "little") + data + bytes(16))
    assert MappedTensors(tmp_path / "x", "")["a"].tolist() == [0, 0]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_pipe_does_not_block(tmp_path):
    os.mkfifo(tmp_path / "x")
    with pytest.raises(UserError, match=r"cannot read .*x: a pipe, not a file"):
        MappedTensors(tmp_path / "x", "make it again")
