"""Shards that are damaged or do not fit, and `imagen data encode`."""

import re
import shutil
import tarfile
from pathlib import Path

import pytest
from damage import corrupt_pictures, cut, damage, damage_tar, garble

from imagen.data.shards.index import index_shard
from imagen.emoji.presets import MINILM


@pytest.mark.parametrize(
    "spoil, message",
    [
        (shutil.rmtree, "does not exist; make shards of your images with `imagen data build`, or render"),
        (lambda f: shutil.rmtree(f / "train") or (f / "train").mkdir(), "contains no shards"),
        (damage_tar, "truncated or replaced; copy it again"),
        (corrupt_pictures, "not a complete image"),
        (damage("*.tar", Path.unlink), "is missing although its index exists"),
        (damage("*.index.safetensors", Path.unlink), "index.safetensors is missing; run `imagen data encode"),
        (damage("*.index.safetensors", cut), "index.safetensors is truncated"),
        (damage("*.index.safetensors", garble), "index.safetensors is corrupt"),
        (damage("*.text.safetensors", Path.unlink), "has no text embeddings of"),
        (damage("*.text.safetensors", cut), "text.safetensors is truncated"),
        (damage("*.text.safetensors", garble), "text.safetensors is corrupt"),
    ],
)
def test_damaged_data(copy, mistake, quick, tmp_path, spoil, message):
    shards = copy("shards")
    spoil(shards)
    said = mistake("train", "debug_64", "--data", shards, "--out", tmp_path / "run", *quick, "--train.steps", 2)
    assert message in said and str(shards) in said


@pytest.mark.parametrize(
    "options, message",
    [
        (["--text.encoder", "t5-small"], "no .* of 't5-small' .*; run `imagen data encode .* --encoder t5-small"),
        (["--text.max_tokens", "77"], r"no .* \(00000\..*\.77\.text\..*\), only 00000\..*; run .* --max-tokens 77`"),
        (["--text.revision", "v2"], r"no .* \(00000\..*@v2\..*\), only 00000\..*; run .* --revision v2"),
        (["--text.width", "512", "--stage.unet.text_width", "512"], "made with width '384', but the run needs '512'"),
    ],
)
def test_embeddings_of_another_encoder(made, mistake, tmp_path, options, message):
    said = mistake("train", "debug_64", "--data", made / "shards", "--out", tmp_path / "run", *options)
    assert re.search(message, said)


def test_pictures_that_are_too_small(made, mistake, tmp_path):
    said = mistake("train", "debug_1024", "--data", made / "shards", "--out", tmp_path / "run")
    assert "00000.tar" in said and "1024" in said


def test_encoding(made, copy, imagen, mistake, tmp_path):
    shards, tokens = copy("shards"), MINILM.max_tokens
    assert "samples, every shard was encoded already by" in imagen("data", "encode", shards, "--max-tokens", tokens)
    assert "nowhere does not exist" in mistake("data", "encode", tmp_path / "nowhere")
    assert "no/such" in mistake("data", "encode", shards, "--encoder", tmp_path / "no" / "such")
    assert "not a whole number" in mistake("data", "encode", shards, "--batch-tokens", 0)
    (tmp_path / "silent").mkdir()
    (tmp_path / "k.png").write_bytes(b"x")
    with tarfile.open(tmp_path / "silent" / "00000.tar", "w") as tar:
        tar.add(tmp_path / "k.png", "k.png")
    index_shard(tmp_path / "silent" / "00000.tar")
    assert "00000.tar has no captions" in mistake("data", "encode", tmp_path / "silent")
    assert "another" in mistake("data", "emoji", "--out", made / "shards", "--objects", 3)
