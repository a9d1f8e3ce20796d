"""Run every command that reads a training run on a malicious one: exit code 2, one line, and no code is executed."""

import hashlib
import io
import json
import os
import pickle
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from command_line import run_imagen
from torch.distributed.checkpoint.metadata import BytesStorageMetadata

from imagen.train.checkpoint import checkpoint_paths


class Payload:
    """Creates the folder `marker` when it is unpickled."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


def pickled(marker: Path) -> bytes:
    """Return a file that would execute code in torch.load."""
    file = io.BytesIO()
    torch.save(Payload(marker), file)
    return file.getvalue()


# --- malicious checkpoints ---


def declared_as_bytes(step: Path, marker: Path) -> None:
    """Declare payloads as bytes in the metadata; torch's load planner unpickles those."""
    plant_payloads(step, marker, as_bytes=True)


def declared_as_a_tensor(step: Path, marker: Path) -> None:
    plant_payloads(step, marker, as_bytes=False)


def plant_payloads(step: Path, marker: Path, as_bytes: bool) -> None:
    metadata = pickle.loads((step / ".metadata").read_bytes())
    for index in [index for index in metadata.storage_data if index.fqn.startswith(("ema.", "model."))]:
        location = metadata.storage_data.pop(index)
        part, payload = step / location.relative_path, pickled(marker)
        offset = part.stat().st_size
        with open(part, "ab") as file:
            file.write(payload)
        if as_bytes:
            metadata.state_dict_metadata[index.fqn] = BytesStorageMetadata()
            index = replace(index, offset=None, index=None)
        metadata.storage_data[index] = replace(location, offset=offset, length=len(payload))
    (step / ".metadata").write_bytes(pickle.dumps(metadata))


def metadata_is_code(step: Path, marker: Path) -> None:
    (step / ".metadata").write_bytes(pickle.dumps(Payload(marker)))


def part_is_code(step: Path, marker: Path) -> None:
    for part in step.glob("*.distcp"):
        part.write_bytes(pickled(marker))


def state_is_code(step: Path, marker: Path) -> None:
    (step / "state.json").write_bytes(pickled(marker))


CHECKPOINTS = (declared_as_bytes, declared_as_a_tensor, metadata_is_code, part_is_code)


def plant_checkpoints(run: Path, attack, marker: Path) -> None:
    for step in checkpoint_paths(run / "checkpoints"):
        attack(step, marker)


# --- malicious exports and other files of a run ---


def plant_export(run: Path, marker: Path, which: str) -> None:
    """Replace a safetensors file by a pickle, with a matching hash in cascade.json."""
    file = run / "export" / "cascade.json"
    manifest = json.loads(file.read_text())
    records = manifest["stages"] if which == "weights" else [manifest["text"]]
    for record in records:
        path = run / "export" / record["weights" if which == "weights" else "unconditional"]
        path.write_bytes(pickled(marker))
        record["sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
    file.write_text(json.dumps(manifest))


def plant_row_files(run: Path, marker: Path) -> None:
    for name in ("config.json", "metrics.jsonl", "evaluation.jsonl"):
        (run / name).write_bytes(pickled(marker))


def plant_averages(run: Path, marker: Path) -> None:
    for name in ("decay-0.9", "sigma_rel-0.05", "sigma_rel-0.1"):
        (run / "averages" / name).mkdir(parents=True)
        (run / "averages" / name / "step-00000004.safetensors").write_bytes(pickled(marker))


@pytest.fixture
def run(artifacts, tmp_path) -> Path:
    return Path(shutil.copytree(artifacts / "base", tmp_path / "run"))


def assert_rejected(tmp_path, *arguments: object) -> str:
    done = run_imagen(*arguments)
    assert done.code == 2 and done.err.startswith("imagen: ") and done.err.count("\n") == 1, done
    assert "Traceback" not in done.err + done.out
    assert not (tmp_path / "marker").exists(), "code in the run was executed"
    return done.err


def test_the_payload_executes_when_unpickled(tmp_path):
    """Verify the payload; otherwise the tests below would test nothing."""
    torch.load(io.BytesIO(pickled(tmp_path / "marker")), weights_only=False)
    assert (tmp_path / "marker").exists()


@pytest.mark.parametrize("attack", [*CHECKPOINTS, state_is_code], ids=lambda attack: attack.__name__)
def test_train_executes_no_code_from_checkpoints(artifacts, run, tmp_path, quick_options, attack):
    plant_checkpoints(run, attack, tmp_path / "marker")
    arguments = ["--data", artifacts / "shards", "--out", run, "--train.steps", 6, *quick_options]
    assert "no checkpoint in" in assert_rejected(tmp_path, "train", "debug_64", *arguments)


@pytest.mark.parametrize("step", [[], ["--step", 4]], ids=["last", "step"])
@pytest.mark.parametrize("attack", CHECKPOINTS, ids=lambda attack: attack.__name__)
def test_export_executes_no_code_from_checkpoints(run, tmp_path, attack, step):
    plant_checkpoints(run, attack, tmp_path / "marker")
    assert "is damaged" in assert_rejected(tmp_path, "export", run, *step, "--out", tmp_path / "out")
    assert not (tmp_path / "out" / "cascade.json").exists()


@pytest.mark.parametrize("how", [("--decay", 0.9), ("--sigma-rel", 0.08)], ids=["decay", "sigma_rel"])
def test_export_executes_no_code_from_averages(run, tmp_path, how):
    plant_averages(run, tmp_path / "marker")
    assert "cannot be read" in assert_rejected(tmp_path, "export", run, *how, "--out", tmp_path / "out")


COMMANDS = {
    "sample": lambda run, artifacts, out: ["sample", run, "a red apple", "--steps", 1, "--out", out],
    "upscale": lambda run, artifacts, out: ["upscale", run, artifacts / "picture.png", "--out", out],
    "evaluate-emoji": lambda run, artifacts, out: ["evaluate-emoji", run, "--n", 2, "--steps", 1, "--out", out],
    "assemble": lambda run, artifacts, out: ["assemble", run, "--out", out],
    "assemble with half": lambda run, artifacts, out: ["assemble", run, "--half", "--out", out],
    "assemble with another": lambda run, artifacts, out: ["assemble", run, artifacts / "sr", "--out", out],
    "convert diffusers": lambda run, artifacts, out: ["convert", "diffusers", run, "--out", out],
    "convert deepfloyd": lambda run, artifacts, out: ["convert", "deepfloyd", run, "--out", out],
}


@pytest.mark.parametrize("which", ["weights", "unconditional"])
@pytest.mark.parametrize("name", COMMANDS)
def test_no_command_executes_code_from_the_export(artifacts, run, tmp_path, name, which):
    plant_export(run, tmp_path / "marker", which)
    assert_rejected(tmp_path, *COMMANDS[name](run, artifacts, tmp_path / "out"))
    assert not (tmp_path / "out" / "cascade.json").exists()


def test_compare_and_evaluate_execute_no_code_from_metrics(run, tmp_path):
    plant_row_files(run, tmp_path / "marker")
    assert_rejected(tmp_path, "compare", run, "--out", tmp_path / "curves.png")


@pytest.mark.parametrize("attack", [*CHECKPOINTS, state_is_code], ids=lambda attack: attack.__name__)
def test_other_commands_do_not_read_checkpoints(artifacts, run, tmp_path, attack):
    """They need only the export or the metrics, and work despite malicious checkpoints."""
    plant_checkpoints(run, attack, tmp_path / "marker")
    for arguments in (
        ["sample", run, "a red apple", "--steps", 1, "--out", tmp_path / "pictures"],
        ["assemble", run, "--out", tmp_path / "cascade"],
        ["compare", run, "--out", tmp_path / "curves.png"],
    ):
        done = run_imagen(*arguments)
        assert done.code == 0, done.err
    assert not (tmp_path / "marker").exists()
