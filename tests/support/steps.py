"""Build the parts of a training step of the toy experiment."""

import torch
from loading import open_loader

from imagen.stage.loss import ForwardProcess

UNCONDITIONAL = torch.full((2, 8), 7.0)


def load_batches(shards, experiment, count, **options):
    """Return the first `count` batches of the experiment's training data. options: as for `Loader`."""
    stage = experiment.stage
    loader = open_loader(
        shards,
        experiment.data,
        resolution=stage.resolution,
        low_resolution=stage.low_resolution,
        text=experiment.text,
        seed=experiment.train.seed,
        **{"batch_size": experiment.train.batch_size, **options},
    )
    return [batch for batch, _ in zip(loader, range(count), strict=False)]


def build_forward_process(experiment, batch_size=None, text_dropout=0.5):
    """Build the forward process of an experiment."""
    return ForwardProcess(
        experiment.stage,
        seed=experiment.train.seed,
        batch_size=batch_size or experiment.train.batch_size,
        device=torch.device("cpu"),
        text_dropout=text_dropout,
        unconditional_LD=UNCONDITIONAL,
        schedule=experiment.train.schedule,
    )


def randomize_zero_layers(unet):
    """Add noise to all parameters, so that zero-initialised layers do not make the output zero. Returns the U-Net."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in unet.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return unet
