import os

import numpy as np
import pytest
from safetensors.numpy import save_file

from imagen.data import mapped
from imagen.data.mapped import MappedTensors
from imagen.errors import UserError

VALUES = {"a": np.arange(24, dtype=np.int64).reshape(6, 4), "b": np.arange(7, dtype=np.uint16)}


def test_rows_are_those_of_the_view(tmp_path):
    save_file(VALUES, tmp_path / "x")
    tensors = MappedTensors(tmp_path / "x", "copy it again")
    for name, first, last in (("a", 0, 6), ("a", 2, 3), ("a", 4, 4), ("b", 1, 7)):
        found = tensors.rows(name, first, last)
        assert found.dtype == VALUES[name].dtype and np.array_equal(found, VALUES[name][first:last])
        assert np.array_equal(tensors[name][first:last], found)
    with pytest.raises(UserError, match="no tensor 'c'; copy it again"):
        tensors.rows("c", 0, 1)
    os.truncate(tmp_path / "x", os.path.getsize(tmp_path / "x") - 8)
    with pytest.raises(UserError, match="cut off; copy it again"):
        tensors.rows("a", 0, 6), tensors.rows("b", 0, 7)


def test_few_maps_stay_and_all_can_be_read_again(tmp_path, monkeypatch):
    monkeypatch.setattr(mapped, "_KEPT", 3)
    monkeypatch.setattr(mapped, "_mapped", mapped.deque())
    for i in range(8):
        save_file({"a": VALUES["a"] + i}, tmp_path / f"{i}")
    files = [MappedTensors(tmp_path / f"{i}", "") for i in range(8)]
    first = files[0]["a"]
    for _ in range(2):
        for i, file in enumerate(files):
            assert np.array_equal(file["a"], VALUES["a"] + i)
            assert sum(other._map is not None for other in files) <= 3
    assert np.array_equal(first, VALUES["a"])  # a view outlives its map's release
