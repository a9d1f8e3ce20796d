"""Test that a checkpoint's metadata is not trusted: invalid content is rejected, and nothing in it is executed."""

import io
import os
import pickle
import shutil
from contextlib import suppress
from dataclasses import replace
from enum import Enum
from pathlib import Path

import pytest
import torch
from command_line import run_imagen
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    TensorProperties,
)

from imagen.errors import UserError
from imagen.train import checkpoint
from imagen.train.checkpoint import CheckpointFolder, checkpoint_paths
from imagen.train.checkpoint_metadata import read_checkpoint_metadata

TENSORS = {"model": {"a": torch.arange(12.0).reshape(3, 4), "b": torch.ones(5, dtype=torch.int64)}}


class Payload:
    """An object that executes code when it is unpickled."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


@pytest.fixture
def saved(tmp_path) -> Path:
    CheckpointFolder(tmp_path / "checkpoints", keep=2).save(1, TENSORS, {"step": 1}, wait=True)
    return tmp_path / "checkpoints" / "step-00000001"


def rewrite(path: Path, change) -> None:
    """Change the metadata of a checkpoint as an attacker would."""
    file = path / ".metadata"
    metadata = pickle.loads(file.read_bytes())
    file.write_bytes(pickle.dumps(change(metadata) or metadata))


def plant(path: Path, name: str, marker: Path) -> None:
    """Declare a tensor as bytes that contain a pickle of `Payload`."""
    payload = io.BytesIO()
    torch.save(Payload(marker), payload)

    def change(metadata):
        (index,) = (index for index in metadata.storage_data if index.fqn == name)
        part = path / "__0_0.distcp"
        place = metadata.storage_data.pop(index)
        offset = part.stat().st_size
        with open(part, "ab") as file:
            file.write(payload.getvalue())
        metadata.state_dict_metadata[name] = BytesStorageMetadata()
        index = replace(index, offset=None, index=None)
        metadata.storage_data[index] = replace(place, offset=offset, length=len(payload.getvalue()))

    rewrite(path, change)


def test_the_attack_works_without_checks(saved, tmp_path):
    """Without the checks, torch executes the payload. This shows that the tests below are effective."""
    import torch.distributed.checkpoint as dcp

    plant(saved, "model.a", tmp_path / "marker")
    tensors = {"model": {name: torch.zeros_like(value) for name, value in TENSORS["model"].items()}}
    with suppress(Exception):  # the payload returns no tensor
        dcp.load(tensors, storage_reader=dcp.FileSystemReader(saved), no_dist=True)
    assert (tmp_path / "marker").exists()


@pytest.mark.parametrize("body", [b"", b"garbage\n", pickle.dumps(5), pickle.dumps(print), None])
def test_invalid_metadata_gives_a_one_line_error(saved, body, capfd):
    """A body of None stands for a pipe. torch itself would print a traceback."""
    (saved / ".metadata").unlink()
    os.mkfifo(saved / ".metadata") if body is None else (saved / ".metadata").write_bytes(body)
    with pytest.raises(UserError, match=r"no checkpoint in .* can be read \(step-00000001: ") as caught:
        CheckpointFolder(saved.parent, keep=2).load_latest({"model": {"a": torch.zeros(3, 4)}})
    assert "\n" not in str(caught.value) and capfd.readouterr() == ("", "")
    with pytest.raises(ValueError, match=r"\.metadata|a pipe, not a file|invalid literal"):
        checkpoint.read(saved, "model")


def test_bytes_are_not_loaded(saved, tmp_path):
    plant(saved, "model.a", tmp_path / "marker")
    tensors = {"model": {name: torch.zeros_like(value) for name, value in TENSORS["model"].items()}}
    for attempt in (lambda: checkpoint.load(saved, tensors), lambda: checkpoint.read(saved, "model")):
        with pytest.raises(ValueError, match=r"BytesStorageMetadata"):
            attempt()
    assert not (tmp_path / "marker").exists()


def test_the_planner_rejects_bytes(saved, tmp_path, monkeypatch):
    """Test the second barrier: entries stored as bytes are not unpickled even if the metadata is accepted."""
    plant(saved, "model.a", tmp_path / "marker")
    monkeypatch.setattr(
        checkpoint, "read_checkpoint_metadata", lambda path: pickle.loads((path / ".metadata").read_bytes())
    )
    tensors = {"model": {name: torch.zeros_like(value) for name, value in TENSORS["model"].items()}}
    with pytest.raises(ValueError, match="stored as bytes, not as a tensor"):
        checkpoint.load(saved, tensors)
    assert not (tmp_path / "marker").exists()


@pytest.mark.parametrize("what", ["train", "export"])
def test_commands_do_not_execute_a_checkpoint(artifacts, tmp_path, quick_options, what):
    run, marker = tmp_path / "run", tmp_path / "marker"
    shutil.copytree(artifacts / "base", run)
    for path in checkpoint_paths(run / "checkpoints"):
        names = pickle.loads((path / ".metadata").read_bytes()).state_dict_metadata
        plant(path, next(name for name in names if name.startswith("ema.")), marker)
    if what == "train":
        arguments = [
            "train",
            "debug_64",
            "--data",
            artifacts / "shards",
            "--out",
            run,
            "--train.steps",
            5,
            *quick_options,
        ]
    else:
        arguments = ["export", run, "--out", tmp_path / "exported"]
    done = run_imagen(*arguments)
    assert done.code == 2 and done.err.count("\n") == 1 and "BytesStorageMetadata" in done.err, done.err
    assert not marker.exists()


def with_size(metadata, size):
    name = "model.a"
    metadata.state_dict_metadata[name] = replace(metadata.state_dict_metadata[name], size=size)


def with_chunk(metadata, offsets, sizes):
    metadata.state_dict_metadata["model.a"].chunks[0] = ChunkStorageMetadata(offsets, sizes)


def with_location(metadata, **fields):
    index = next(iter(metadata.storage_data))
    metadata.storage_data[index] = replace(metadata.storage_data[index], **fields)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda m: {"not": "an account"}, "not the metadata"),
        (lambda m: setattr(m, "state_dict_metadata", None), "lists no tensors"),
        (lambda m: setattr(m, "storage_data", [1]), "has no locations"),
        (lambda m: m.state_dict_metadata.update({"model.a": "text"}), "declared as str"),
        (lambda m: m.state_dict_metadata.update({7: m.state_dict_metadata["model.a"]}), "7 is not a name"),
        (lambda m: with_size(m, torch.Size([2**40, 2**40])), "its tensors have"),
        (lambda m: with_size(m, (-3, 4)), "an invalid size"),
        (lambda m: with_size(m, "34"), "an invalid size"),
        (lambda m: with_chunk(m, torch.Size([2, 0]), torch.Size([3, 4])), "a chunk outside"),
        (lambda m: with_chunk(m, torch.Size([0]), torch.Size([3])), "a chunk outside"),
        (lambda m: with_location(m, relative_path="../../elsewhere"), "is stored in"),
        (lambda m: with_location(m, relative_path="/etc/passwd"), "is stored in"),
        (lambda m: with_location(m, offset=-1), "exceeds"),
        (lambda m: with_location(m, length=10**12), "exceeds"),
        (lambda m: with_location(m, length="all"), "exceeds"),
    ],
)
def test_invalid_content_is_rejected(saved, change, message):
    rewrite(saved, change)
    with pytest.raises(ValueError, match=message):
        read_checkpoint_metadata(saved)


def test_forbidden_types_are_rejected(saved, tmp_path):
    (saved / ".metadata").write_bytes(pickle.dumps(Payload(tmp_path / "marker")))
    with pytest.raises(ValueError, match=r"it names posix\.mkdir|it names nt\.mkdir"):
        read_checkpoint_metadata(saved)
    assert not (tmp_path / "marker").exists()


@pytest.mark.parametrize("kept", [0, 1, 10, 100, -1])
def test_truncated_metadata_is_rejected(saved, kept):
    file = saved / ".metadata"
    file.write_bytes(file.read_bytes()[:kept])
    with pytest.raises(ValueError, match=r"\.metadata"):
        read_checkpoint_metadata(saved)


def test_valid_metadata_is_read(saved):
    assert set(read_checkpoint_metadata(saved).state_dict_metadata) == {"model.a", "model.b"}
    tensors = {"model": {name: torch.zeros_like(value) for name, value in TENSORS["model"].items()}}
    checkpoint.load(saved, tensors)
    assert all(torch.equal(tensors["model"][name], value) for name, value in TENSORS["model"].items())


class GetattrPickler(pickle.Pickler):
    """Pickles members of enums as Python 3.11.0 to 3.11.3 do: by `getattr`."""

    def reducer_override(self, value):
        return (getattr, (type(value), value.name)) if isinstance(value, Enum) else NotImplemented


def test_metadata_written_by_early_python_3_11_is_read(saved):
    stream = io.BytesIO()
    GetattrPickler(stream).dump(pickle.loads((saved / ".metadata").read_bytes()))
    (saved / ".metadata").write_bytes(stream.getvalue())
    assert b"getattr" in stream.getvalue()
    assert set(read_checkpoint_metadata(saved).state_dict_metadata) == {"model.a", "model.b"}


@pytest.mark.parametrize("target, name", [
    (Metadata, "__init__"),
    (type(TensorProperties().memory_format), "torch_contiguous_format"),
    (TensorProperties, "create_from_tensor"),
])  # fmt: skip
def test_other_attributes_are_not_read(saved, target, name):
    class Attribute:
        def __reduce__(self):
            return getattr, (target, name)

    (saved / ".metadata").write_bytes(pickle.dumps(Attribute()))
    with pytest.raises(ValueError, match="cannot be read"):
        read_checkpoint_metadata(saved)
