"""`imagen assemble`, and cascades that are damaged."""

import shutil

import pytest
from damage import broken_weights, cut, edit, files, largest_file, other_weights


@pytest.mark.parametrize(
    "spoil, message",
    [
        (shutil.rmtree, "does not exist; expected a cascade or a training run"),
        (lambda f: (f / "cascade.json").unlink(), "is not a cascade"),
        (lambda f: (f / "cascade.json").write_text("{"), "cascade.json is not valid JSON"),
        (edit(lambda v: v["stages"][0]["config"].update(resolutio=1)), "unknown field 'stages[0].config.resolutio'"),
        (edit(lambda v: v["stages"][0].update(sha256="0" * 64)), "is damaged or was replaced: its sha256 is"),
        (edit(lambda v: v["stages"].reverse()), "is a base stage; only the first stage can be one"),
        (edit(lambda v: v["stages"][1]["config"].update(low_resolution=32)), "upsamples 32-pixel images"),
        (edit(lambda v: v["text"]["config"].update(width=512)), "unet.text_width is 384 but"),
        (edit(lambda v: v.update(format=7)), "this version of imagen reads 1"),
        (lambda f: next(f.glob("stage-256-*")).unlink(), "is missing; cascade.json names it"),
        (lambda f: cut(next(f.glob("stage-256-*"))), "is damaged or was replaced"),
        (broken_weights, "is not a safetensors file"),
        (other_weights, "tensor 'conv_in.bias' is missing"),
    ],
)
def test_damaged_cascades(copy, mistake, tmp_path, spoil, message):
    cascade = copy("cascade")
    spoil(cascade)
    said = mistake("sample", cascade, "a cat", "--out", tmp_path / "o")
    assert message in said and str(cascade) in said
    assert not (tmp_path / "o").exists()


def test_a_disk_that_is_full_while_assembling(made, mistake, tmp_path):
    with largest_file(100_000):
        said = mistake("assemble", made / "base", "--out", tmp_path / "c")
    assert "free some space" in said and not list((tmp_path / "c").glob("cascade.json"))
    assert not [path for path in (tmp_path / "c").iterdir() if path.name.endswith(".tmp")]


def test_stages_that_do_not_fit(made, copy, mistake, tmp_path):
    base, sr = made / "base", made / "sr"
    other = copy("sr")
    edit(lambda v: v["text"]["config"].update(encoder="t5-small"))(other / "export")
    for runs, message in (
        ((sr, base), "is a base stage; only the first stage can be one"),
        ((sr,), "cannot come first"),
        ((base, base), "only the first stage can be one"),
        ((base, sr, sr), "upsamples 64-pixel images, but the stage before it outputs 256"),
        ((base, other), "text encoder is 't5-small', not 'sentence-transformers/all-MiniLM-L6-v2'"),
        ((base, tmp_path / "none"), "none does not exist"),
        ((base, made / "shards"), "is not a cascade"),
    ):
        assert message in mistake("assemble", *runs, "--out", tmp_path / "c")
    assert not (tmp_path / "c").exists()


def test_assembling_overwrites_nothing_else(made, copy, imagen, mistake, tmp_path):
    run, cascade = copy("base"), copy("cascade")
    before = files(tmp_path)
    assert "is a training run; choose another folder" in mistake("assemble", run, made / "sr", "--out", run)
    assert "contains a cascade of stages [64, 256], not [64]" in mistake("assemble", run, "--out", cascade)
    assert "is not empty and not a cascade" in mistake("assemble", run, "--out", tmp_path)
    imagen("assemble", run, made / "sr", "--out", cascade)  # the same again
    assert files(tmp_path) == before
