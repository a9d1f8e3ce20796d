"""Save and load cascade folders: they are replaced atomically, and damaged ones are rejected."""

import json
from pathlib import Path

import pytest
import torch
from cascades import QUICK, TEXT, WIDTH, WordTokenEncoder, flip_a_byte, max_difference, save_cascade, stage

from imagen.cascade import (
    Cascade,
    export_stage,
)
from imagen.errors import UserError


def edit_manifest(folder: Path, change) -> None:
    """Apply `change` to the parsed cascade.json."""
    value = json.loads((folder / "cascade.json").read_text())
    change(value)
    (folder / "cascade.json").write_text(json.dumps(value))


def test_save_and_load_are_bit_exact(small_cascade, tmp_path):
    small_cascade.save(tmp_path)
    loaded = Cascade.load(tmp_path)
    assert loaded.text == TEXT and torch.equal(loaded.unconditional, small_cascade.unconditional)
    for a, b in zip(small_cascade.stages, loaded.stages, strict=True):
        assert (a.config, a.info, a.sha256) == (b.config, b.info, b.sha256)
        for (name, p), (other, q) in zip(a.unet.state_dict().items(), b.unet.state_dict().items(), strict=True):
            assert name == other and torch.equal(p, q)
    loaded.texts.encoder = WordTokenEncoder()
    assert max_difference(small_cascade.sample(["cat"], **QUICK)[0], loaded.sample(["cat"], **QUICK)[0]) == 0
    assert len(Cascade.load(tmp_path, stages=1).stages) == 1
    with pytest.raises(UserError, match="choose 1 to 2"):
        Cascade.load(tmp_path, stages=3)


def test_saving_again_leaves_no_stale_files(tmp_path):
    save_cascade(stage(16), stage(32, 16), path=tmp_path)
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / ".stage-16-new.123.tmp").write_text("left by a killed process")
    save_cascade(stage(16, seed=1), path=tmp_path)
    names = sorted(path.name.split("-")[0] for path in tmp_path.iterdir())
    assert names == ["cascade.json", "notes.txt", "stage", "text"]
    Cascade.load(tmp_path)


def test_an_interrupted_save_leaves_the_old_cascade(tmp_path, monkeypatch):
    save_cascade(stage(16), path=tmp_path)
    before = Cascade.load(tmp_path).stages[0].sha256

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("imagen.cascade.storage.write_json", interrupt)
    with pytest.raises(KeyboardInterrupt):
        save_cascade(stage(16, seed=1), path=tmp_path)
    assert Cascade.load(tmp_path).stages[0].sha256 == before


def test_a_run_loads_from_its_export(tmp_path):
    made = stage(16)
    arguments = {"stage": made.config, "text": TEXT, "unconditional": torch.zeros(1, WIDTH), "info": {"step": 1}}
    export_stage(tmp_path / "export", weights=made.unet.state_dict(), **arguments)
    assert Cascade.load(tmp_path).stages[0].info == {"step": 1}
    changed = {key: value + 1 for key, value in made.unet.state_dict().items()}
    export_stage(tmp_path / "export", weights=changed, **{**arguments, "info": {"step": 2}})
    loaded = Cascade.load(tmp_path)
    assert loaded.stages[0].info == {"step": 2}
    assert torch.equal(loaded.stages[0].unet.conv_out.bias, made.unet.conv_out.bias + 1)
    save_cascade(stage(16), stage(32, 16), path=tmp_path / "whole")
    with pytest.raises(UserError, match=r"stages \[16, 32\]; export stage 16 elsewhere"):
        export_stage(tmp_path / "whole", weights=changed, **arguments)


def test_loading_retries_after_a_concurrent_export(tmp_path, monkeypatch):
    """An export that deletes the weights after cascade.json is read makes loading start again."""
    import imagen.cascade.cascade as module

    save_cascade(stage(16), path=tmp_path)
    original = module.read_tensors

    def export_then_read(folder, name, sha256):
        monkeypatch.setattr(module, "read_tensors", original)
        save_cascade(stage(16, seed=1), path=tmp_path)
        return original(folder, name, sha256)

    monkeypatch.setattr(module, "read_tensors", export_then_read)
    assert torch.equal(Cascade.load(tmp_path).stages[0].unet.conv_in.bias, stage(16, seed=1).unet.conv_in.bias)


def replace_in_manifest(folder: Path, old: str, new: str) -> None:
    """Replace text in cascade.json, for changes that `json.dumps` cannot make."""
    text = (folder / "cascade.json").read_text()
    assert old in text
    (folder / "cascade.json").write_text(text.replace(old, new, 1))


@pytest.mark.parametrize(
    "damage,message",
    [
        (lambda f: (f / "cascade.json").unlink(), "is not a cascade: it contains neither"),
        (lambda f: (f / "cascade.json").write_text("{"), r"cascade\.json is not valid JSON"),
        (lambda f: edit_manifest(f, lambda v: v.update(format=9)), r"cascade\.json: field 'format' is 9"),
        (
            lambda f: edit_manifest(f, lambda v: v["stages"][0]["config"].update(resolutoin=3)),
            "resolutoin'; did you mean",
        ),
        (
            lambda f: edit_manifest(f, lambda v: v["stages"][0]["config"].update(resolution="x")),
            r"cascade\.json: .*resolution",
        ),
        (lambda f: edit_manifest(f, lambda v: v["stages"][0].pop("sha256")), "sha256"),
        (lambda f: edit_manifest(f, lambda v: v.update(stages=[])), "no stages"),
        (lambda f: edit_manifest(f, lambda v: v["stages"][0].update(weights="../x")), "without a path"),
        (lambda f: edit_manifest(f, lambda v: v.update(text=None)), "stage 16: its U-Net is conditioned on text"),
        (lambda f: edit_manifest(f, lambda v: v["stages"].reverse()), "stage 16 is a base stage"),
        (
            lambda f: edit_manifest(f, lambda v: v["stages"][1]["config"].update(low_resolution=8)),
            "stage 32: upsamples 8-pixel images",
        ),
        (
            lambda f: edit_manifest(f, lambda v: v["stages"][0]["config"]["sampling"].update(steps=0)),
            "stage 16: steps is 0",
        ),
        (
            lambda f: edit_manifest(f, lambda v: v["stages"][0]["config"]["unet"].update(levels=[])),
            r"cascade\.json: .*one level",
        ),
        (
            lambda f: edit_manifest(f, lambda v: v["stages"][0]["config"].update(resolution=0)),
            "resolution is 0; it must be at",
        ),
        (
            lambda f: edit_manifest(f, lambda v: v["stages"][0]["config"]["unet"]["levels"][0].update(channels=10**9)),
            "channels is 1,000,000,000; it must be at least 1 and at most 65536",
        ),
        (
            lambda f: edit_manifest(f, lambda v: v["text"]["config"].update(max_tokens=10**9)),
            "text.max_tokens is 1,000,000,000; it must be",
        ),
        (
            lambda f: edit_manifest(f, lambda v: v.update(stages=v["stages"] * 40)),
            "the number of stages is 80; it must be",
        ),
        (lambda f: replace_in_manifest(f, '"eta": 0.0', '"eta": 1e400'), "1e400 is not a finite number"),
        (
            lambda f: edit_manifest(f, lambda v: v["stages"][0]["config"]["sampling"].update(guidance=1e39)),
            r"guidance is 1e\+39; it must be",
        ),
        (
            lambda f: replace_in_manifest(f, '"info": {', '"info": {"a": ' + "[" * 900 + "]" * 900 + ", "),
            "nested more than 100 deep",
        ),
        (lambda f: (f / "cascade.json").write_text("[" * 100_000), "nested more than 100 deep"),
        (lambda f: next(f.glob("stage-32-*")).unlink(), r"stage-32-\w+\.safetensors is missing"),
        (lambda f: next(f.glob("text-*")).unlink(), r"text-\w+\.safetensors is missing"),
        (lambda f: flip_a_byte(f, "stage-16-*"), r"stage-16-\w+\.safetensors is damaged"),
        (lambda f: flip_a_byte(f, "text-*"), r"text-\w+\.safetensors is damaged"),
    ],
)
def test_damaged_folders_are_rejected(tmp_path, damage, message):
    save_cascade(stage(16), stage(32, 16), path=tmp_path)
    damage(tmp_path)
    with pytest.raises(UserError, match=message) as caught:
        Cascade.load(tmp_path)
    assert "\n" not in str(caught.value) and str(tmp_path) in str(caught.value)


@pytest.mark.parametrize(
    "change,message",
    [
        (lambda w: w.pop("conv_out.bias"), "'conv_out.bias' is missing"),
        (lambda w: w.update(extra=torch.zeros(1)), "'extra' is not in the U-Net"),
        (lambda w: w.update({"conv_out.bias": torch.zeros(4)}), r"'conv_out.bias' has shape \(4,\), .* needs \(3,\)"),
        (
            lambda w: w.update({"conv_out.bias": torch.zeros(3, dtype=torch.int8)}),
            "'conv_out.bias' has dtype torch.int8",
        ),
    ],
)
def test_weights_of_another_architecture_are_rejected(tmp_path, change, message):
    made = stage(16)
    weights = dict(made.unet.state_dict())
    change(weights)
    unconditional = torch.zeros(1, WIDTH)
    export_stage(tmp_path, stage=made.config, text=TEXT, weights=weights, unconditional=unconditional, info={})
    with pytest.raises(UserError, match=message):
        Cascade.load(tmp_path)
