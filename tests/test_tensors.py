"""Compare our safetensors files with those of the safetensors package."""

import os

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save

from imagen.tensors import save_tensors

TENSORS = {
    "b": torch.arange(6, dtype=torch.float32).reshape(2, 3).T,  # not contiguous
    "a": torch.tensor(3.5),
    "empty": torch.empty(0, 4),
    "half": torch.ones(3, dtype=torch.bfloat16),
    "number": torch.tensor([1, 2]),
    "flag": torch.tensor([True, False]),
}


def test_tensors_are_read_as_written(tmp_path):
    save_tensors(TENSORS, tmp_path / "x", {"z": "1", "a": "é"})
    found = load_file(tmp_path / "x")
    assert found.keys() == TENSORS.keys()
    for name, value in TENSORS.items():
        assert found[name].dtype == value.dtype and torch.equal(found[name], value)
    with safe_open(tmp_path / "x", "pt") as file:
        assert file.metadata() == {"z": "1", "a": "é"}


@pytest.mark.parametrize("metadata", [None, {"format": "pt"}])
def test_files_equal_those_of_safetensors(tmp_path, metadata):
    """Checked for dtypes of different sizes, as in weights."""
    plain = {name: value.contiguous() for name, value in TENSORS.items() if name != "number"}
    save_tensors(plain, tmp_path / "x", metadata)
    assert (tmp_path / "x").read_bytes() == save(plain, metadata)


def test_arrays_and_tensors_give_the_same_bytes(tmp_path):
    arrays = {name: value.numpy() for name, value in TENSORS.items() if name != "half"}
    save_tensors(arrays, tmp_path / "arrays")
    save_tensors({name: torch.from_numpy(np.array(value)) for name, value in arrays.items()}, tmp_path / "tensors")
    assert (tmp_path / "arrays").read_bytes() == (tmp_path / "tensors").read_bytes()


def test_file_permissions_follow_the_umask(tmp_path):
    before = os.umask(0o027)
    try:
        save_tensors(TENSORS, tmp_path / "x")
    finally:
        os.umask(before)
    assert (tmp_path / "x").stat().st_mode & 0o777 == 0o640
    assert [path.name for path in tmp_path.iterdir()] == ["x"]
