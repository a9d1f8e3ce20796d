"""Faults planted in shards are found by name, and nothing else is reported."""

import dataclasses

import numpy as np
import patients
import pytest
from patients import Constant, Words, discs, write_shards
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from imagen.doctor import data

FEW = 24


def plain(image):
    """Return an image of the mean colour everywhere."""
    return np.broadcast_to(image.mean((0, 1)).astype(np.uint8), image.shape)


@pytest.mark.parametrize(
    "fault, changes",
    [
        ("captions-alike", {"caption": lambda text: "a photo" if "red disc" in text or "blue" in text else text}),
        ("captions-empty", {"caption": lambda text: "" if "red" in text else text}),
        ("value-range", {"change": lambda image: image // 4}),
        ("value-range", {"change": lambda image: 170 + image // 4}),
        ("images-grey", {"change": lambda image: image.mean(-1, keepdims=True).astype(np.uint8).repeat(3, -1)}),
        ("images-constant", {"change": lambda image: image if image[0, 0, 0] < 100 else plain(image)}),
        ("embeddings-equal", {"encoder": Constant()}),
        ("embeddings-zero", {"encoder": Constant(0.0)}),
    ],
)
def test_faults_of_samples(fault, changes, tmp_path, found):
    shards = write_shards(tmp_path / "shards", discs(FEW), **changes)
    assert found(shards) == {fault}
    assert found(shards, quick=True) == {fault}


def test_images_saved_from_floats(tmp_path, found):
    """Values 0 and 1 of 255; such images are often equal, too."""
    report = found.report(write_shards(tmp_path / "shards", discs(FEW), change=lambda image: image // 128))
    (finding,) = [finding for finding in report.findings if finding.name == "value-range"]
    assert "between 0 and 1 of 255. They were saved from values between 0 and 1." in finding.explanation


def test_duplicates(tmp_path, found):
    shards = write_shards(tmp_path / "shards", [*discs(FEW), *discs(8)])
    report = found.report(shards)
    (finding,) = report.findings
    assert (finding.name, finding.where, finding.severity) == ("duplicates", "train", "warning")
    assert finding.numbers | {"images": 32, "copies": 8, "share": 0.25} == finding.numbers
    assert "25% of the images are copies" in finding.explanation


def test_copies_in_a_large_data_set_are_found_by_their_bytes(tmp_path, found, monkeypatch):
    """Few of 96 images are read; evenly spaced ones have no copy among them."""
    monkeypatch.setattr(data, "BYTES", 24)
    drawings = [drawing for drawing in discs(48) for _ in range(2)]
    shards = write_shards(tmp_path / "shards", drawings, discs(8, seed=1) + discs(8))
    report = found.report(shards, "duplicates")
    copies, leak = report.findings
    assert (copies.name, copies.where, copies.numbers["of"]) == ("duplicates", "train", 96)
    assert copies.numbers["images"] <= 24 and copies.numbers["share"] == 0.5
    assert "looked at, of 96" in copies.explanation
    assert (leak.name, leak.where) == ("heldout-in-training", "heldout")
    assert 0.2 < leak.numbers["in_training"] < 0.8


def test_held_out_images_in_training(tmp_path, found):
    assert found(write_shards(tmp_path / "shards", discs(FEW), discs(FEW)[::2])) == {"heldout-in-training"}


def test_unreadable_images(tmp_path, found):
    shards = write_shards(tmp_path / "shards", discs(FEW))
    tar = shards / "train" / "00000.tar"
    tar.write_bytes(tar.read_bytes().replace(b"IHDR", b"IHDX", 3))
    assert found(shards) == {"images-unreadable"}


def test_another_encoder_wrote_the_embeddings(tmp_path, found):
    """The header names the right encoder; the numbers are those of another."""
    report = found.report(write_shards(tmp_path / "shards", discs(FEW), encoder=Words(salt=1)))
    assert {finding.name for finding in report.findings} == {"embeddings-wrong-encoder"}
    assert report.findings[0].numbers["distance_from_encoder"] > 1


def test_embeddings_of_another_encoder(healthy, tmp_path, found):
    """The header names an encoder that the run does not read."""
    other = Words(dataclasses.replace(patients.TEXT, encoder="t5-small"))
    shards = write_shards(tmp_path / "shards", discs(FEW), encoder=other)
    report = found.report(healthy.run, "embeddings", data=shards)
    (finding,) = report.findings
    assert finding.name == "embeddings-wrong-encoder"
    assert "0 of 1 shards have embeddings of words" in finding.explanation and "t5-small" in finding.explanation
    assert "--encoder words --max-tokens 16" in finding.remedy
    bare = write_shards(tmp_path / "bare", discs(FEW), encoder=None)
    assert found(healthy.run, "embeddings", data=bare) == {"embeddings-missing"}


def test_stale_and_broken_embeddings(tmp_path, found):
    shards, later = write_shards(tmp_path / "a", discs(FEW)), write_shards(tmp_path / "b", discs(FEW)[::-1])
    (sidecar,) = (shards / "train").glob("*.text.safetensors")
    (other,) = (later / "train").glob("*.text.safetensors")
    whole = sidecar.read_bytes()
    sidecar.write_bytes(other.read_bytes())  # of the same samples in another order
    assert found(shards) == {"embeddings-stale"}
    sidecar.write_bytes(whole)
    with safe_open(sidecar, "pt") as file:
        metadata = file.metadata()
    tensors = load_file(sidecar)
    tensors["tokens"][:, 0] = 0x7FC0  # NaN in bfloat16
    save_file(tensors, sidecar, metadata)
    assert found(shards) == {"embeddings-not-finite"}


def test_data_that_do_not_fit_the_run(healthy, tmp_path, found):
    """Images of 8 pixels for a stage of 16: what `imagen train` refuses is a finding."""
    small = write_shards(tmp_path / "small", discs(FEW), change=lambda image: image[::2, ::2])
    report = found.report(
        healthy.run, "captions", "loss by noise level", "conditional gap", "channel order", data=small
    )
    (finding,) = report.findings
    assert finding.name == "unreadable" and "no image is large enough for 16x16; train" in finding.explanation
