"""Test that training without sidecars equals training with them."""

import dataclasses
import json
import shutil

import pytest
import torch
from encoders import ToyEncoder
from loading import open_loader
from run_state import assert_same, last_checkpoint_without_config
from toy import experiment, stopping_at, train_quietly

from imagen.data.embed.encode import encode_shards
from imagen.data.embed.sidecar import Embeddings
from imagen.data.loading.config import DataConfig
from imagen.data.shards.dataset import open_split
from imagen.errors import UserError
from imagen.files import read_json
from imagen.text import encoder as text_module
from imagen.text.config import TextConfig
from imagen.train.on_the_fly import EncodingLoader, unconditional, with_text

SIDECARS = DataConfig(workers=0)
ON_THE_FLY = DataConfig(workers=0, on_the_fly=True)


class BatchDependent(ToyEncoder):
    """An encoder with embeddings that depend on the other captions of a call, as a real encoder's do slightly."""

    def encode(self, captions):
        shift = 0.01 * len({*captions})
        return [tokens + shift for tokens in super().encode(captions)]


@pytest.fixture
def bare(shards, tmp_path):
    """The toy data set without its embeddings."""
    return shutil.copytree(shards, tmp_path / "bare", ignore=shutil.ignore_patterns("*.text.safetensors"))


@pytest.fixture(params=[ToyEncoder])
def loaded(request, monkeypatch):
    """Replace `load_text_encoder` by a toy; return the devices it was called with."""
    devices = []

    def load(config, device):
        devices.append(torch.device(device))
        return request.param()

    monkeypatch.setattr(text_module, "load_text_encoder", load)
    return devices


@pytest.mark.parametrize("options", [{}, {"shuffle_captions": True}, {"micro_batch": 4}])
def test_equals_training_with_sidecars(shards, bare, tmp_path, rows, loaded, options):
    """Compares losses, conditional gap and weights, with text dropout."""
    options = {"steps": 8, "text_dropout": 0.5, "gap_every": 4, **options}
    assert train_quietly(experiment(data=SIDECARS, **options), shards, tmp_path / "sidecars").finished and loaded == []
    assert train_quietly(experiment(data=ON_THE_FLY, **options), bare, tmp_path / "on_the_fly").finished
    assert loaded == [torch.device("cpu")]  # once, on the training device
    assert rows(tmp_path / "on_the_fly") == rows(tmp_path / "sidecars")
    assert "conditional_gap" in rows(tmp_path / "on_the_fly")[-1]
    assert_same(
        last_checkpoint_without_config(tmp_path / "on_the_fly"), last_checkpoint_without_config(tmp_path / "sidecars")
    )


@pytest.mark.parametrize("loaded", [BatchDependent], indirect=True)
def test_a_resumed_run_equals_an_uninterrupted_one(bare, tmp_path, rows, loaded):
    what = experiment(steps=8, data=ON_THE_FLY)
    assert train_quietly(what, bare, tmp_path / "whole").finished
    assert train_quietly(what, bare, tmp_path / "parts", report=stopping_at(3)).step == 4
    assert train_quietly(what, bare, tmp_path / "parts").finished
    assert rows(tmp_path / "parts") == rows(tmp_path / "whole")
    assert_same(last_checkpoint_without_config(tmp_path / "parts"), last_checkpoint_without_config(tmp_path / "whole"))


def test_a_run_may_resume_with_or_without_sidecars(shards, bare, tmp_path, loaded):
    assert train_quietly(experiment(steps=2, data=SIDECARS), shards, tmp_path / "run").finished
    assert train_quietly(experiment(steps=4, data=ON_THE_FLY), bare, tmp_path / "run").step == 4
    assert train_quietly(experiment(steps=6, data=SIDECARS), shards, tmp_path / "run").step == 6


def test_batches_equal_those_with_sidecars_and_equal_captions_are_encoded_once(shards):
    seen = []

    class Counting(ToyEncoder):
        def encode(self, captions):
            seen.extend(captions)
            return super().encode(captions)

    options = {"resolution": 16, "batch_size": 16, "seed": 1, "split": "heldout"}
    with_sidecars = next(iter(open_loader(shards, SIDECARS, text=ToyEncoder.config, **options)))
    batch = next(iter(EncodingLoader(open_loader(shards, SIDECARS, **options), Counting())))
    assert torch.equal(batch.text, with_sidecars.text) and torch.equal(batch.text_mask, with_sidecars.text_mask)
    assert batch.keys == with_sidecars.keys and batch.text.dtype == torch.float32
    assert sorted(seen) == sorted(set(batch.captions))
    assert torch.equal(unconditional(ToyEncoder()), torch.zeros(1, 8))


def test_the_unconditional_embedding_equals_the_stored_one(shards):
    class Empty(ToyEncoder):
        config = TextConfig(encoder="toy", width=8, unconditional="empty")

    stored = Embeddings(open_split(shards), Empty.config).unconditional()
    assert torch.equal(unconditional(Empty()), stored)
    loader = open_loader(shards, SIDECARS, resolution=16, batch_size=2, seed=1)
    assert with_text(next(iter(loader)), Empty()).text.shape[-1] == 8


def test_an_encoder_in_a_relative_folder_is_recorded_with_its_absolute_path(bare, tmp_path, monkeypatch):
    (tmp_path / "encoder").mkdir()

    class Local(ToyEncoder):
        config = TextConfig(encoder=str(tmp_path / "encoder"), width=8)

    encode_shards(bare, Local(), progress=False)
    monkeypatch.chdir(tmp_path)
    what = dataclasses.replace(experiment(steps=1, gap_samples=2), text=TextConfig(encoder="encoder", width=8))
    assert train_quietly(what, bare, tmp_path / "run").finished
    config = tmp_path / "run" / "config.json"
    recorded = read_json(config)
    assert recorded["text"]["encoder"] == str(tmp_path / "encoder")
    recorded["text"]["encoder"] = "encoder"  # as earlier versions did
    config.write_text(json.dumps(recorded))
    longer = dataclasses.replace(what, train=dataclasses.replace(what.train, steps=2))
    assert train_quietly(longer, bare, tmp_path / "run").step == 2
    monkeypatch.chdir("/")
    with pytest.raises(UserError, match=r"was started with text\.encoder = .*, not .encoder."):
        train_quietly(longer, bare, tmp_path / "run")


def test_on_the_fly_without_text_is_rejected(shards, tmp_path):
    without = dataclasses.replace(experiment(data=ON_THE_FLY), text=None)
    with pytest.raises(UserError, match=r"data\.on_the_fly is true, but text is null"):
        train_quietly(without, shards, tmp_path)


def test_cleaning_and_padding_need_on_the_fly(shards, tmp_path):
    padded = dataclasses.replace(experiment(), text=TextConfig(encoder="toy", width=8, padding="full"))
    with pytest.raises(UserError, match=r"text\.padding 'full'; .* set data\.on_the_fly to true"):
        train_quietly(padded, shards, tmp_path)
