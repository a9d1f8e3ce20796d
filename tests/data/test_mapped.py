import numpy as np
from safetensors.numpy import load_file
from safetensors.torch import safe_open

from imagen.data.mapped import MappedTensors, save_tensors

ARRAYS = {
    "bytes": np.arange(5, dtype=np.uint8),
    "bits": np.arange(12, dtype=np.uint16).reshape(3, 4)[:, ::2],  # not contiguous
    "wide": np.array([2**63, 1], np.uint64),
    "none": np.empty((0, 7), np.int32),
}
METADATA = {"z": "ä", "a": "1", "m": '"'}


def test_safetensors_reads_what_is_written(tmp_path):
    path = tmp_path / "x.safetensors"
    save_tensors(ARRAYS, path, METADATA)
    with safe_open(path, "np") as file:
        assert file.metadata() == METADATA
    read, mapped = load_file(path), MappedTensors(path, "")
    assert read.keys() == ARRAYS.keys() and mapped.metadata == METADATA
    for name, array in ARRAYS.items():
        for found in (read[name], mapped[name]):
            assert found.dtype == array.dtype and np.array_equal(found, array)


def test_bytes_follow_from_the_contents(tmp_path):
    for name, turn in (("a", list), ("b", reversed)):
        save_tensors(dict(turn(ARRAYS.items())), tmp_path / name, dict(turn(METADATA.items())))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
