"""The toy experiment. `python toy.py SHARDS RUN STEPS WORKERS` trains it in a process of its own, or in torchrun's."""

import dataclasses
import sys
from pathlib import Path

import torch

from imagen.data.loading.config import DataConfig
from imagen.jsonconfig import to_json
from imagen.models.config import Level, UNetConfig
from imagen.stage.config import StageConfig
from imagen.text.config import TextConfig
from imagen.train.experiment import Experiment
from imagen.train.optim import OptimConfig
from imagen.train.ranks import joined
from imagen.train.trainer import TrainConfig, train

UNET = UNetConfig(
    levels=(Level(channels=16, blocks=1), Level(channels=32, blocks=1, attention="fused")),
    text_width=8,
    context_width=16,
    time_width=32,
    head_channels=16,
)
TRAIN = TrainConfig(
    steps=20,
    batch_size=8,
    precision="fp32",
    log_every=3,
    gap_every=6,
    gap_samples=16,
    checkpoint_every=5,
    sample_every=0,
)


def experiment(unet=UNET, low_resolution=None, data=None, optim=None, **train_fields):
    return Experiment(
        name="toy",
        stage=StageConfig(resolution=16, unet=unet, low_resolution=low_resolution),
        text=TextConfig(encoder="toy", width=8),
        data=data or DataConfig(workers=0),
        optim=optim or OptimConfig(lr=1e-3, warmup_steps=4),
        train=dataclasses.replace(TRAIN, **train_fields),
    )


def go(what, shards, run, **options):
    """`train` in silence, unless `say` is given."""
    return train(what, to_json(what), shards, run, **{"say": lambda line: None, **options})


if __name__ == "__main__":
    torch.set_num_threads(1)  # as in the tests: sums in another order round otherwise
    shards, run, steps, workers = sys.argv[1:]
    what = experiment(steps=int(steps), data=DataConfig(workers=int(workers)))
    with joined("cpu") as ranks:
        say = lambda line: print(line, flush=True)  # noqa: E731
        result = train(what, to_json(what), Path(shards), Path(run), ranks=ranks, say=say)
        say(result.reason)
