"""The parts of a training step of the toy experiment, for tests."""

import torch
from loading import open_loader

from imagen.stage.loss import ForwardProcess

UNCONDITIONAL = torch.full((2, 8), 7.0)


def loaded(shards, what, count, **place):
    """Return `count` batches of the experiment's training data."""
    stage = what.stage
    loader = open_loader(
        shards,
        what.data,
        resolution=stage.resolution,
        low_resolution=stage.low_resolution,
        text=what.text,
        seed=what.train.seed,
        **{"batch_size": what.train.batch_size, **place},
    )
    return [batch for batch, _ in zip(loader, range(count), strict=False)]


def noising(what, batch_size=None, text_dropout=0.5):
    return ForwardProcess(
        what.stage,
        seed=what.train.seed,
        batch_size=batch_size or what.train.batch_size,
        device=torch.device("cpu"),
        text_dropout=text_dropout,
        unconditional_LD=UNCONDITIONAL,
        schedule=what.train.schedule,
    )


def awake(unet):
    """Randomise the zero-initialised layers of a network, so that its output is not zero."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in unet.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return unet
