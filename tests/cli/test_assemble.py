"""Test `imagen assemble` and damaged cascades."""

import shutil

import pytest
from damage import broken_weights, edit_manifest, max_file_size, other_weights, read_files, truncate


@pytest.mark.parametrize(
    "apply_damage, message",
    [
        (shutil.rmtree, "does not exist; expected a cascade or a training run"),
        (lambda f: (f / "cascade.json").unlink(), "is not a cascade"),
        (lambda f: (f / "cascade.json").write_text("{"), "cascade.json is not valid JSON"),
        (
            edit_manifest(lambda v: v["stages"][0]["config"].update(resolutio=1)),
            "unknown field 'stages[0].config.resolutio'",
        ),
        (edit_manifest(lambda v: v["stages"][0].update(sha256="0" * 64)), "is damaged or was replaced: its sha256 is"),
        (edit_manifest(lambda v: v["stages"].reverse()), "is a base stage; only the first stage can be one"),
        (edit_manifest(lambda v: v["stages"][1]["config"].update(low_resolution=32)), "upsamples 32-pixel images"),
        (edit_manifest(lambda v: v["text"]["config"].update(width=512)), "unet.text_width is 384 but"),
        (edit_manifest(lambda v: v.update(format=7)), "this version of imagen reads 1"),
        (lambda f: next(f.glob("stage-256-*")).unlink(), "is missing; cascade.json names it"),
        (lambda f: truncate(next(f.glob("stage-256-*"))), "is damaged or was replaced"),
        (broken_weights, "is not a safetensors file"),
        (other_weights, "tensor 'conv_in.bias' is missing"),
    ],
)
def test_damaged_cascades_are_rejected(copy_artifact, error_of, tmp_path, apply_damage, message):
    cascade = copy_artifact("cascade")
    apply_damage(cascade)
    error = error_of("sample", cascade, "a cat", "--out", tmp_path / "o")
    assert message in error and str(cascade) in error
    assert not (tmp_path / "o").exists()


def test_a_full_disk_while_assembling_is_a_user_error(artifacts, error_of, tmp_path):
    with max_file_size(100_000):
        error = error_of("assemble", artifacts / "base", "--out", tmp_path / "c")
    assert "free some space" in error and not list((tmp_path / "c").glob("cascade.json"))
    assert not [path for path in (tmp_path / "c").iterdir() if path.name.endswith(".tmp")]


def test_stages_that_do_not_match_are_rejected(artifacts, copy_artifact, error_of, tmp_path):
    base, sr = artifacts / "base", artifacts / "sr"
    other = copy_artifact("sr")
    edit_manifest(lambda v: v["text"]["config"].update(encoder="t5-small"))(other / "export")
    for runs, message in (
        ((sr, base), "is a base stage; only the first stage can be one"),
        ((sr,), "cannot come first"),
        ((base, base), "only the first stage can be one"),
        ((base, sr, sr), "upsamples 64-pixel images, but the stage before it outputs 256"),
        ((base, other), "text encoder is 't5-small', not 'sentence-transformers/all-MiniLM-L6-v2'"),
        ((base, tmp_path / "none"), "none does not exist"),
        ((base, artifacts / "shards"), "is not a cascade"),
    ):
        assert message in error_of("assemble", *runs, "--out", tmp_path / "c")
    assert not (tmp_path / "c").exists()


def test_assembling_overwrites_nothing_else(artifacts, copy_artifact, imagen, error_of, tmp_path):
    run, cascade = copy_artifact("base"), copy_artifact("cascade")
    before = read_files(tmp_path)
    assert "is a training run; choose another folder" in error_of("assemble", run, artifacts / "sr", "--out", run)
    assert "contains a cascade of stages [64, 256], not [64]" in error_of("assemble", run, "--out", cascade)
    assert "is not empty and not a cascade" in error_of("assemble", run, "--out", tmp_path)
    imagen("assemble", run, artifacts / "sr", "--out", cascade)  # the same again
    assert read_files(tmp_path) == before
