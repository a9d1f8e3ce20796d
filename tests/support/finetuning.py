"""Cascades to start training from, and experiments that do."""

import dataclasses

import torch
from toy import UNET, experiment

from imagen.cascade.storage import export_stage
from imagen.models.unet import UNet
from imagen.train import checkpoint
from imagen.train.checkpoint import checkpoint_paths
from imagen.train.experiment import override
from imagen.train.finetune import check_changes, start_from
from imagen.train.ranks import process_group
from imagen.train.run import train_run


def random_weights(config=UNET, seed=3):
    torch.manual_seed(seed)
    return {name: 0.1 * torch.randn_like(value) for name, value in UNet(config).state_dict().items()}


def cascade_of(folder, what=None, seed=3):
    """Write a one-stage cascade with random weights of the toy experiment."""
    what = what or experiment()
    weights = random_weights(what.stage.unet, seed)
    export_stage(
        folder, stage=what.stage, text=what.text, weights=weights, unconditional=torch.zeros(1, 8), info={"step": 7}
    )
    return folder


def started(cascade, *fields, partial=False, run=None, **train):
    """The toy experiment, begun from `cascade`, with fields set as on the command line."""
    what = dataclasses.replace(experiment(**{"steps": 4, **train}), stage=experiment().stage)
    begun = start_from(what, str(cascade), partial=partial, run=run)
    found = override(begun, fields)
    check_changes(begun, found)
    return found


def train_together(whats, shards, folder):
    """Train each experiment on all ranks. It is defined here, so that ranks need not import diffusers."""
    with process_group() as ranks:
        for number, what in enumerate(whats):
            train_run(what, shards, folder / str(number), ranks=ranks, report=lambda line: None)


def without_config_of(run):
    path = checkpoint_paths(run / "checkpoints")[-1]
    return {kind: checkpoint.read(path, kind) for kind in ("model", "ema", "optimizer")}
