"""Training on several data sets."""

import json

import pytest
import torch
from run_state import assert_same, last_checkpoint
from toy import experiment, stopping_at, train_quietly

from imagen.errors import UserError
from imagen.train.checkpoint import checkpoint_paths


@pytest.fixture(scope="module")
def data(shards):
    return [(shards / "train", 0.7), (shards / "heldout", 0.3)]


WHAT = experiment(steps=6, log_every=2, checkpoint_every=3, gap_every=0, gap_samples=2)


def test_a_mixture_resumes_exactly_and_new_weights_are_reported(data, tmp_path):
    assert train_quietly(WHAT, data, tmp_path / "whole").finished
    assert train_quietly(WHAT, data, tmp_path / "parts", report=stopping_at(2)).step == 3
    reported = []
    assert train_quietly(WHAT, data, tmp_path / "parts", report=reported.append).finished
    assert_same(last_checkpoint(tmp_path / "parts"), last_checkpoint(tmp_path / "whole"))
    assert not any("mixed" in line for line in reported)

    state = json.loads((checkpoint_paths(tmp_path / "parts" / "checkpoints")[-1] / "state.json").read_text())
    assert state["weights"] == ["7/10", "3/10"]
    other = [(folder, 0.5) for folder, _ in data]
    more = experiment(steps=8, log_every=2, checkpoint_every=3, gap_every=0, gap_samples=2)
    assert train_quietly(more, other, tmp_path / "parts", report=reported.append).finished
    (line,) = [line for line in reported if "mixed" in line]
    assert "from here on the data are mixed as" in line and line.endswith("heldout=0.5 (before: 0.7, 0.3)")
    weights = last_checkpoint(tmp_path / "parts")["model"]["conv_in.weight"]
    assert not torch.equal(weights, last_checkpoint(tmp_path / "whole")["model"]["conv_in.weight"])


def test_a_missing_folder_is_refused_before_the_run_folder_exists(data, tmp_path):
    with pytest.raises(UserError, match="nowhere does not exist"):
        train_quietly(WHAT, [*data, (tmp_path / "nowhere", 1)], tmp_path / "run")
    assert not (tmp_path / "run").exists()
