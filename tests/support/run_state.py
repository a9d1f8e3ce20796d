"""Read and compare the checkpoints and metrics of runs."""

import json

import torch

from imagen.train import checkpoint
from imagen.train.checkpoint import checkpoint_paths


def last_checkpoint(run):
    """Return everything that the last checkpoint of a run holds."""
    path = checkpoint_paths(run / "checkpoints")[-1]
    state = json.loads((path / "state.json").read_text())
    kinds = ("model", "ema", "sigma_rel-0.1", "optimizer")
    return state | {kind: checkpoint.read(path, kind) for kind in kinds}


def assert_same(a, b):
    """Assert that nested dicts and lists of tensors and values are bit-identical."""
    assert type(a) is type(b)
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_same(a[key], b[key])
    elif isinstance(a, list):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            assert_same(x, y)
    elif isinstance(a, torch.Tensor):
        assert torch.equal(a, b)
    else:
        assert a == b


def last_checkpoint_without_config(run):
    return {name: value for name, value in last_checkpoint(run).items() if name != "config"}


def metrics(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
