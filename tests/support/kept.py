"""Read and compare the state of a run, for tests."""

import json

import torch

from imagen.train import checkpoint
from imagen.train.checkpoint import checkpoint_paths


def final(run):
    """Read everything in the last checkpoint."""
    path = checkpoint_paths(run / "checkpoints")[-1]
    facts = json.loads((path / "state.json").read_text())
    kinds = ("model", "ema", "sigma_rel-0.1", "optimizer")
    return facts | {kind: checkpoint.read(path, kind) for kind in kinds}


def assert_same(a, b):
    """Assert that nested dicts and lists are equal bit for bit."""
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


def without_config(run):
    return {name: value for name, value in final(run).items() if name != "config"}


def metrics(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
