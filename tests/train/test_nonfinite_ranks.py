"""Test that all ranks skip a step with a non-finite sample on one of them, and stop together."""

import json
from dataclasses import replace

import pytest
import torch
from command_line import run_imagen
from loading import open_loader
from ranks import run_on_ranks
from toy import experiment

from imagen.data.loading.loader import Loader
from imagen.presets import PRESETS
from imagen.train import data
from imagen.train.config import ParallelConfig

WHAT = experiment(text_dropout=0.0, log_every=1, gap_every=0, checkpoint_every=0, max_nonfinite=3)


class Poisoned(Loader):
    """A loader with NaN text in a sample of the second of two ranks, in step 3 and from step 6 on."""

    def __iter__(self):
        for batch in super().__iter__():
            step, place = divmod(batch.position, 8)
            if place == 4 and (step == 2 or step >= 5):
                text = batch.text.clone()
                text[1] = torch.nan
                batch = replace(batch, text=text)
            yield batch


def train_on(parallel, shards, run):
    PRESETS["toy"] = lambda: replace(WHAT, parallel=parallel)
    data.Loader = Poisoned
    return tuple(run_imagen("train", "toy", "--data", shards, "--out", run, "--device", "cpu"))


@pytest.mark.parametrize("shard", [1, 2])
def test_all_ranks_skip_and_stop_together(shards, tmp_path, shard):
    ends = run_on_ranks(2, train_on, ParallelConfig(shard=shard), shards, tmp_path)
    loader = open_loader(shards, WHAT.data, resolution=16, text=WHAT.text, seed=0, batch_size=8)
    keys = [batch.keys[5] for batch, _ in zip(loader, range(8), strict=False)]
    (code, reported, why), (other_code, other_said, other_why) = ends
    assert code == other_code == 2
    assert why == other_why and why.count("\n") == 1
    assert why.startswith(f"imagen: step 8: the loss is not finite for {keys[7]}; 3 consecutive steps were skipped")
    assert not other_said
    skipped = [line for line in reported.splitlines() if "step skipped" in line]
    assert skipped == [
        f"step {step}: the loss is not finite for {keys[step - 1]}; step skipped ({count} consecutive)"
        for step, count in ((3, 1), (6, 1), (7, 2))
    ]
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row.get("nonfinite") for row in rows] == [None, None, 1, None, None, 1, 1]
    assert [row["loss"] is None for row in rows] == [row.get("nonfinite") == 1 for row in rows]
