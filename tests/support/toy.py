"""Train a toy experiment. `python toy.py SHARDS RUN STEPS WORKERS` does so in a separate process or under torchrun."""

import dataclasses
import os
import signal
import sys
from pathlib import Path

import torch

import imagen
from imagen.cascade import export_stage
from imagen.data.loading.config import DataConfig
from imagen.models.config import Level, UNetConfig
from imagen.stage.config import StageConfig
from imagen.text.config import TextConfig
from imagen.train.callbacks import Callback
from imagen.train.config import OptimConfig, TrainConfig
from imagen.train.experiment import Experiment
from imagen.train.ranks import Ranks, process_group
from imagen.train.trainer import train

TOY = str(Path(__file__))
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(imagen.__file__).parents[1])}

UNET = UNetConfig(
    levels=(Level(channels=16, blocks=1), Level(channels=32, blocks=1, attention="fused", attend="last")),
    middle=False,
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
    """Return the toy experiment. train_fields: changed fields of TRAIN."""
    return Experiment(
        name="toy",
        stage=StageConfig(resolution=16, unet=unet, low_resolution=low_resolution),
        text=TextConfig(encoder="toy", width=8),
        data=data or DataConfig(workers=0),
        optim=optim or OptimConfig(lr=1e-3, warmup_steps=4),
        train=dataclasses.replace(TRAIN, **train_fields),
    )


def train_quietly(toy_experiment, shards, run, **options):
    """Call `train` on the CPU and without output; options can replace `report` and `ranks`."""
    return train(toy_experiment, shards, run, **{"report": lambda line: None, "ranks": Ranks(), **options})


def stopping_at(step):
    """Return a `report` that sends SIGTERM when `step` is logged; training then stops after the next step."""

    def report(line):
        if line.startswith(f"step {step}/"):
            os.kill(os.getpid(), signal.SIGTERM)

    return report


class ExportZeros(Callback):
    """Exports the EMA weights with an unconditional embedding of zeros."""

    def on_checkpoint(self, run, step):
        weights = run.checkpointer.export()
        parts = {"stage": run.experiment.stage, "text": run.experiment.text, "unconditional": torch.zeros(1, 8)}
        run.ranks.on_first(lambda: export_stage(run.folder / "export", weights=weights, info={"step": step}, **parts))


def train_on_rank(toy_experiment, shards, run):
    """Train on this rank with exports, and return the reported lines."""
    lines = []
    with process_group() as ranks:
        train_quietly(toy_experiment, shards, run, ranks=ranks, report=lines.append, callbacks=[ExportZeros()])
    return lines


if __name__ == "__main__":
    torch.set_num_threads(1)  # as in the tests; more threads change the order of sums, hence rounding
    shards, run, steps, workers = sys.argv[1:]
    toy_experiment = experiment(steps=int(steps), data=DataConfig(workers=int(workers)))
    with process_group("cpu") as ranks:
        report = lambda line: print(line, flush=True)  # noqa: E731
        result = train(toy_experiment, Path(shards), Path(run), ranks=ranks, report=report)
        report(result.reason)
