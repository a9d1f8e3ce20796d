"""Test damaged or unsuitable shards, and `imagen data encode`."""

import re
import shutil
import tarfile
from pathlib import Path

import pytest
from damage import corrupt_images, damage_file, damage_tar, overwrite, truncate

from imagen.data.shards.index import index_shard
from imagen.emoji.presets import MINILM


@pytest.mark.parametrize(
    "apply_damage, message",
    [
        (shutil.rmtree, "does not exist; make shards of your images with `imagen data build`, or render"),
        (lambda f: shutil.rmtree(f / "train") or (f / "train").mkdir(), "contains no shards"),
        (damage_tar, "truncated or replaced; copy it again"),
        (corrupt_images, "not a complete image"),
        (damage_file("*.tar", Path.unlink), "is missing although its index exists"),
        (damage_file("*.index.safetensors", Path.unlink), "index.safetensors is missing; run `imagen data encode"),
        (damage_file("*.index.safetensors", truncate), "index.safetensors is truncated"),
        (damage_file("*.index.safetensors", overwrite), "index.safetensors is corrupt"),
        (damage_file("*.text.safetensors", Path.unlink), "has no text embeddings of"),
        (damage_file("*.text.safetensors", truncate), "text.safetensors is truncated"),
        (damage_file("*.text.safetensors", overwrite), "text.safetensors is corrupt"),
    ],
)
def test_damaged_shards_are_rejected(copy_artifact, error_of, quick_options, tmp_path, apply_damage, message):
    shards = copy_artifact("shards")
    apply_damage(shards)
    error = error_of(
        "train", "debug_64", "--data", shards, "--out", tmp_path / "run", *quick_options, "--train.steps", 2
    )
    assert message in error and str(shards) in error


@pytest.mark.parametrize(
    "options, message",
    [
        (["--text.encoder", "t5-small"], "no .* of 't5-small' .*; run `imagen data encode .* --encoder t5-small"),
        (["--text.max_tokens", "77"], r"no .* \(00000\..*\.77\.text\..*\), only 00000\..*; run .* --max-tokens 77`"),
        (["--text.revision", "v2"], r"no .* \(00000\..*@v2\..*\), only 00000\..*; run .* --revision v2"),
        (["--text.width", "512", "--stage.unet.text_width", "512"], "made with width '384', but the run needs '512'"),
    ],
)
def test_embeddings_of_another_encoder_are_rejected(artifacts, error_of, tmp_path, options, message):
    error = error_of("train", "debug_64", "--data", artifacts / "shards", "--out", tmp_path / "run", *options)
    assert re.search(message, error)


def test_images_that_are_too_small_are_rejected(artifacts, error_of, tmp_path):
    error = error_of("train", "debug_1024", "--data", artifacts / "shards", "--out", tmp_path / "run")
    assert "no image is large enough for 1024x1024; train at a smaller size, or raise data.max_enlargement" in error


def test_shards_are_encoded(artifacts, copy_artifact, imagen, error_of, tmp_path):
    shards, tokens = copy_artifact("shards"), MINILM.max_tokens
    assert "samples, every shard was encoded already by" in imagen("data", "encode", shards, "--max-tokens", tokens)
    assert "nowhere does not exist" in error_of("data", "encode", tmp_path / "nowhere")
    assert "no/such" in error_of("data", "encode", shards, "--encoder", tmp_path / "no" / "such")
    assert "not a whole number" in error_of("data", "encode", shards, "--batch-tokens", 0)
    (tmp_path / "silent").mkdir()
    (tmp_path / "k.png").write_bytes(b"x")
    with tarfile.open(tmp_path / "silent" / "00000.tar", "w") as tar:
        tar.add(tmp_path / "k.png", "k.png")
    index_shard(tmp_path / "silent" / "00000.tar")
    assert "00000.tar has no captions" in error_of("data", "encode", tmp_path / "silent")
    assert "another" in error_of("data", "emoji", "--out", artifacts / "shards", "--objects", 3)
