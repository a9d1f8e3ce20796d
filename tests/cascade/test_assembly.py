"""Assemble cascades from the exports of runs."""

import dataclasses

import pytest
import torch
from cascades import QUICK, TEXT, WIDTH, WordTokenEncoder, flip_a_byte, max_difference, save_cascade, stage

from imagen.cascade import (
    Cascade,
    assemble,
)
from imagen.errors import UserError


def test_assemble_joins_matching_cascades(tmp_path, small_cascade):
    a, b = save_cascade(stage(16), path=tmp_path / "a" / "export"), save_cascade(stage(32, 16), path=tmp_path / "b")
    assemble([a.parent, b], tmp_path / "out")
    joined = Cascade.load(tmp_path / "out")
    joined.texts.encoder = WordTokenEncoder()
    assert max_difference(joined.sample(["cat"], **QUICK)[0], small_cascade.sample(["cat"], **QUICK)[0]) == 0
    assemble([tmp_path / "out", save_cascade(stage(64, 32, text=False), path=tmp_path / "c")], tmp_path / "out")
    assert [s.config.resolution for s in Cascade.load(tmp_path / "out").stages] == [16, 32, 64]
    flip_a_byte(b, "stage-32-*")
    with pytest.raises(UserError, match="damaged"):
        assemble([a, b], tmp_path / "new")
    with pytest.raises(UserError, match=r"contains a cascade of stages \[16, 32, 64\], not \[16\]"):
        assemble([a], tmp_path / "out")
    assert len(Cascade.load(tmp_path / "out").stages) == 3


def test_assemble_reports_mismatches(tmp_path):
    base, sr = save_cascade(stage(16), path=tmp_path / "base"), save_cascade(stage(32, 16), path=tmp_path / "sr")
    other = Cascade([stage(32, 16)], text=dataclasses.replace(TEXT, encoder="T5"), unconditional=torch.zeros(1, WIDTH))
    other.save(tmp_path / "t5")
    Cascade([stage(32, 16)], text=TEXT, unconditional=torch.ones(1, WIDTH)).save(tmp_path / "ones")
    gap = save_cascade(stage(64, 32), path=tmp_path / "gap")
    out = tmp_path / "out"
    for paths, message in [
        ([], "nothing to assemble"),
        ([sr, base], r"base \(stage 16\) is a base stage"),
        ([sr], "sr cannot come first: its stage 32 upsamples 16"),
        ([base, gap], r"gap \(stage 64\): upsamples 32-pixel images, but the stage before it outputs 16"),
        ([base, tmp_path / "t5"], "t5 does not match .*base: text encoder is 'T5', not 'words'"),
        ([base, tmp_path / "ones"], "unconditional embeddings differ"),
        ([base, tmp_path / "none"], "none does not exist"),
    ]:
        with pytest.raises(UserError, match=message):
            assemble(paths, out)
    assert not out.exists()
