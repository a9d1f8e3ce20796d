"""Metrics of samples during training: when, of what, and the same after a restart."""

import pytest
import torch.nn.functional as F
from toy import experiment, stopping_at, train_quietly

from imagen.errors import UserError
from imagen.evaluate.extractors import base
from imagen.evaluate.metrics.table import Features, find_metric

TINY = {"evaluate_every": 10, "evaluate_images": 32, "evaluate_metrics": ("kid", "fid"), "gap_every": 0}


class Colours:
    """A stand-in for Inception: mean colours of quarters, and a record of what it saw."""

    name, description = "colours", "2x2 mean colours"

    def __init__(self):
        self.seen = []

    def __call__(self, images_BCHW):
        features_BD = F.adaptive_avg_pool2d(images_BCHW.float(), 2).flatten(1) / 255
        self.seen.append(features_BD.numpy())
        return features_BD


@pytest.fixture
def colours(monkeypatch):
    extractor = Colours()
    monkeypatch.setitem(base.EXTRACTORS, "inception", lambda argument, device: extractor)
    return extractor


def test_metrics_of_held_out_captions_at_intervals(shards, tmp_path, rows, colours):
    assert train_quietly(experiment(**TINY), shards, tmp_path).finished
    found = {row["step"]: row for row in rows(tmp_path)}
    assert [step for step, row in found.items() if "kid" in row] == [10, 20]
    real, _, last = colours.seen
    assert len(real) == len(last) == 32
    expected = find_metric("kid").measure(Features(real, last))[0].value
    assert found[20]["kid"] == expected != found[10]["kid"] and "fid" in found[20]


def test_a_resumed_run_measures_the_same(shards, tmp_path, rows, colours):
    assert train_quietly(experiment(**TINY), shards, tmp_path / "whole").finished
    assert not train_quietly(experiment(**TINY), shards, tmp_path / "parts", report=stopping_at(12)).finished
    assert train_quietly(experiment(**TINY), shards, tmp_path / "parts").finished
    assert rows(tmp_path / "whole") == rows(tmp_path / "parts")


def test_without_it_nothing_is_measured(shards, tmp_path, rows, colours):
    assert train_quietly(experiment(gap_every=0), shards, tmp_path).finished
    assert not colours.seen and not any("kid" in row for row in rows(tmp_path))


@pytest.mark.parametrize("fields, message", [
    ({"evaluate_metrics": ("fud",)}, "unknown metric 'fud'"),
    ({"evaluate_metrics": ("psnr",)}, "psnr is computed by"),
    ({"evaluate_images": 5}, "evaluate_images is 5"),
])  # fmt: skip
def test_mistakes(shards, tmp_path, fields, message):
    with pytest.raises(UserError, match=message):
        train_quietly(experiment(**{**TINY, **fields}), shards, tmp_path / "run")
    assert not (tmp_path / "run" / "config.json").exists()
