"""Measure the training throughput of this machine with a few training steps on random images."""

import time
from dataclasses import dataclass
from functools import partial

import torch

from imagen.data.loading.batches import Batch
from imagen.models.unet import UNet
from imagen.precision import autocast, autocast_dtype
from imagen.stage.loss import ForwardProcess
from imagen.train.ema import Ema
from imagen.train.experiment import Experiment
from imagen.train.flops import image_flops, meta_unet
from imagen.train.optim import build_optimizer
from imagen.train.ranks import Ranks
from imagen.train.shapes import largest_size
from imagen.train.step import training_step

TOKENS = 12  # per caption


@dataclass(frozen=True)
class Throughput:
    """A measured training throughput."""

    seconds_per_step: float
    images_per_s: float
    gflops: float  # 10^9 operations per second; a step counts as three forward passes

    def forward_seconds(self, gflop: float) -> float:
        """Estimate the duration of forward passes of `gflop` x 10^9 operations from the training throughput."""
        return gflop / self.gflops


def measure_throughput(
    experiment: Experiment, device: torch.device, *, seconds: float = 2.0, most: int = 20
) -> Throughput:
    """Train a new network for about `seconds` after a warm-up step, and return the throughput of the fastest step.

    Data loading is excluded. Slower steps may have been slowed down by other programs on the machine.
    """
    stage, batch_size = experiment.stage, experiment.train.batch_size
    with torch.random.fork_rng(devices=[]):
        unet = UNet(stage.unet).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = build_optimizer(unet.named_parameters(), experiment.optim)
    ema = Ema(unet, experiment.train.ema_decay)
    forward_process = ForwardProcess(stage, seed=0, batch_size=batch_size, device=device)
    mixed = partial(autocast, device, autocast_dtype(device, experiment.train.precision))
    taken: list[float] = []
    while len(taken) < 2 or (sum(taken[1:]) < seconds and len(taken) <= most):
        began = time.monotonic()
        batch = random_batch(experiment, len(taken) * batch_size, batch_size)
        clip_norm = experiment.optim.clip_norm
        training_step(
            unet, [batch], 1, forward_process, optimizer, clip_norm=clip_norm, autocast=mixed, ranks=Ranks(device)
        )
        ema.update(unet, len(taken) + 1)
        taken.append(time.monotonic() - began)
    best = min(taken[1:])
    flops = 3 * image_flops(meta_unet(experiment), experiment) * batch_size
    return Throughput(seconds_per_step=best, images_per_s=batch_size / best, gflops=flops / 1e9 / best)


def random_batch(experiment: Experiment, position: int, count: int) -> Batch:
    """Return a batch of `count` random images and text embeddings, with the shapes of the loader's batches."""
    stage, text = experiment.stage, experiment.text
    height, width = largest_size(stage, experiment.data)
    image = torch.randint(0, 256, (count, stage.unet.image_channels, height, width), dtype=torch.uint8)
    low_res = None
    if stage.low_resolution is not None:
        scale = stage.resolution // stage.low_resolution
        low_res = image[:, :, ::scale, ::scale].contiguous()
    return Batch(
        position=position,
        keys=[str(position + index) for index in range(count)],
        captions=[""] * count,
        image=image,
        low_res=low_res,
        text=None if text is None else torch.randn(count, TOKENS, text.width),
        text_mask=None if text is None else torch.ones(count, TOKENS, dtype=torch.bool),
    )
