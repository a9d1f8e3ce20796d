"""Every command that reads a training run, on an attacker's: one line, exit code 2, and nothing in it runs."""

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
from command_line import command
from torch.distributed.checkpoint.metadata import BytesStorageMetadata

from imagen.train.checkpoint import checkpoint_paths


class Payload:
    """Runs when it is unpickled."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


def pickled(marker: Path) -> bytes:
    """What torch.load would run."""
    file = io.BytesIO()
    torch.save(Payload(marker), file)
    return file.getvalue()


# --- checkpoints: what is in each


def declared_as_bytes(step: Path, marker: Path) -> None:
    """torch's load planner unpickles what the account declares as bytes."""
    plant(step, marker, as_bytes=True)


def declared_as_a_tensor(step: Path, marker: Path) -> None:
    plant(step, marker, as_bytes=False)


def plant(step: Path, marker: Path, as_bytes: bool) -> None:
    metadata = pickle.loads((step / ".metadata").read_bytes())
    for index in [index for index in metadata.storage_data if index.fqn.startswith(("ema.", "model."))]:
        place = metadata.storage_data.pop(index)
        part, payload = step / place.relative_path, pickled(marker)
        offset = part.stat().st_size
        with open(part, "ab") as file:
            file.write(payload)
        if as_bytes:
            metadata.state_dict_metadata[index.fqn] = BytesStorageMetadata()
            index = replace(index, offset=None, index=None)
        metadata.storage_data[index] = replace(place, offset=offset, length=len(payload))
    (step / ".metadata").write_bytes(pickle.dumps(metadata))


def account_is_code(step: Path, marker: Path) -> None:
    (step / ".metadata").write_bytes(pickle.dumps(Payload(marker)))


def part_is_code(step: Path, marker: Path) -> None:
    for part in step.glob("*.distcp"):
        part.write_bytes(pickled(marker))


def state_is_code(step: Path, marker: Path) -> None:
    (step / "state.json").write_bytes(pickled(marker))


CHECKPOINTS = (declared_as_bytes, declared_as_a_tensor, account_is_code, part_is_code)


def evil_checkpoints(run: Path, attack, marker: Path) -> None:
    for step in checkpoint_paths(run / "checkpoints"):
        attack(step, marker)


# --- the export, and what else a run holds


def evil_export(run: Path, marker: Path, which: str) -> None:
    """A pickle in place of a safetensors file, with the right hash in cascade.json."""
    file = run / "export" / "cascade.json"
    manifest = json.loads(file.read_text())
    records = manifest["stages"] if which == "weights" else [manifest["text"]]
    for record in records:
        path = run / "export" / record["weights" if which == "weights" else "unconditional"]
        path.write_bytes(pickled(marker))
        record["sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
    file.write_text(json.dumps(manifest))


def evil_rows(run: Path, marker: Path) -> None:
    for name in ("config.json", "metrics.jsonl", "evaluation.jsonl"):
        (run / name).write_bytes(pickled(marker))


def evil_averages(run: Path, marker: Path) -> None:
    for name in ("decay-0.9", "sigma_rel-0.05", "sigma_rel-0.1"):
        (run / "averages" / name).mkdir(parents=True)
        (run / "averages" / name / "step-00000004.safetensors").write_bytes(pickled(marker))


@pytest.fixture
def run(made, tmp_path) -> Path:
    return Path(shutil.copytree(made / "base", tmp_path / "run"))


def refused(tmp_path, *arguments: object) -> str:
    done = command(*arguments)
    assert done.code == 2 and done.err.startswith("imagen: ") and done.err.count("\n") == 1, done
    assert "Traceback" not in done.err + done.out
    assert not (tmp_path / "marker").exists(), "code of the run was run"
    return done.err


def test_the_payload_is_one(tmp_path):
    """Else the tests below would test nothing."""
    torch.load(io.BytesIO(pickled(tmp_path / "marker")), weights_only=False)
    assert (tmp_path / "marker").exists()


@pytest.mark.parametrize("attack", [*CHECKPOINTS, state_is_code], ids=lambda attack: attack.__name__)
def test_train_reads_no_code_from_checkpoints(made, run, tmp_path, quick, attack):
    evil_checkpoints(run, attack, tmp_path / "marker")
    arguments = ["--data", made / "shards", "--out", run, "--train.steps", 6, *quick]
    assert "no checkpoint in" in refused(tmp_path, "train", "debug_64", *arguments)


@pytest.mark.parametrize("step", [[], ["--step", 4]], ids=["last", "step"])
@pytest.mark.parametrize("attack", CHECKPOINTS, ids=lambda attack: attack.__name__)
def test_export_reads_no_code_from_checkpoints(run, tmp_path, attack, step):
    evil_checkpoints(run, attack, tmp_path / "marker")
    assert "is damaged" in refused(tmp_path, "export", run, *step, "--out", tmp_path / "out")
    assert not (tmp_path / "out" / "cascade.json").exists()


@pytest.mark.parametrize("how", [("--decay", 0.9), ("--sigma-rel", 0.08)], ids=["decay", "sigma_rel"])
def test_export_reads_no_code_from_averages(run, tmp_path, how):
    evil_averages(run, tmp_path / "marker")
    assert "cannot be read" in refused(tmp_path, "export", run, *how, "--out", tmp_path / "out")


COMMANDS = {
    "sample": lambda run, made, out: ["sample", run, "a red apple", "--steps", 1, "--out", out],
    "upscale": lambda run, made, out: ["upscale", run, made / "picture.png", "--out", out],
    "evaluate-emoji": lambda run, made, out: ["evaluate-emoji", run, "--n", 2, "--steps", 1, "--out", out],
    "assemble": lambda run, made, out: ["assemble", run, "--out", out],
    "assemble with half": lambda run, made, out: ["assemble", run, "--half", "--out", out],
    "assemble with another": lambda run, made, out: ["assemble", run, made / "sr", "--out", out],
    "convert diffusers": lambda run, made, out: ["convert", "diffusers", run, "--out", out],
    "convert deepfloyd": lambda run, made, out: ["convert", "deepfloyd", run, "--out", out],
}


@pytest.mark.parametrize("which", ["weights", "unconditional"])
@pytest.mark.parametrize("what", COMMANDS)
def test_no_command_reads_code_from_the_export(made, run, tmp_path, what, which):
    evil_export(run, tmp_path / "marker", which)
    refused(tmp_path, *COMMANDS[what](run, made, tmp_path / "out"))
    assert not (tmp_path / "out" / "cascade.json").exists()


def test_compare_and_evaluate_read_no_code_from_rows(run, tmp_path):
    evil_rows(run, tmp_path / "marker")
    refused(tmp_path, "compare", run, "--out", tmp_path / "curves.png")


@pytest.mark.parametrize("attack", [*CHECKPOINTS, state_is_code], ids=lambda attack: attack.__name__)
def test_other_commands_do_not_read_checkpoints(made, run, tmp_path, attack):
    """They need the export or the metrics alone, and work beside whatever lies there."""
    evil_checkpoints(run, attack, tmp_path / "marker")
    for arguments in (
        ["sample", run, "a red apple", "--steps", 1, "--out", tmp_path / "pictures"],
        ["assemble", run, "--out", tmp_path / "cascade"],
        ["compare", run, "--out", tmp_path / "curves.png"],
    ):
        done = command(*arguments)
        assert done.code == 0, done.err
    assert not (tmp_path / "marker").exists()
