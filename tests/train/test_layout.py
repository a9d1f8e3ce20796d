"""Pictures lie channels-last at every convolution, however the network is spread, and after a checkpoint."""

from dataclasses import replace

import pytest
import torch
from ranks import run_on_ranks
from torch import nn
from toy import UNET, experiment, go

from imagen.models.config import Level
from imagen.models.unet import UNet
from imagen.train.parallel import ParallelConfig, build_mesh, parallelize
from imagen.train.ranks import Ranks, process_group
from imagen.train.setup import TrainingRun

EFFICIENT = replace(
    UNET,
    levels=(Level(channels=32, blocks=1), Level(channels=64, blocks=2, attention="fused", feed_forward=2)),
    family="efficient",
    low_res=True,
)


def is_nhwc(x):
    """Channels-last, or a range of channels of what is, as the gradient of a concatenation's part."""
    (channel, height, width), columns = x.stride()[1:], x.shape[-1]
    return channel == 1 and height == columns * width


def watch(unet):
    """(how many convolutions saw a picture, the names of those where one did not lie channels-last)."""
    seen, others = [], []

    def look(name):
        def hook(module, given, out):
            seen.append(name)
            if not (is_nhwc(given[0]) and is_nhwc(out)):
                others.append(name)
            if out.requires_grad:
                out.register_hook(lambda gradient: None if is_nhwc(gradient) else others.append(f"gradient of {name}"))

        return hook

    for name, module in unet.named_modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(look(name))
    return seen, others


def layouts(config, shard, checkpointing):
    with process_group() as ranks:
        unet = UNet(config)
        parallel = ParallelConfig(shard=shard, checkpointing=checkpointing)
        mesh = build_mesh(parallel, "cpu", ranks.world_size)
        if mesh is None:
            unet.to(memory_format=torch.channels_last)
        network = parallelize(unet, parallel, mesh, ranks.world_size)
        seen, others = watch(unet)
        x = torch.randn(2, 3, 16, 16).contiguous(memory_format=torch.channels_last)
        cond = {"text": torch.randn(2, 5, 8), "text_mask": torch.ones(2, 5, dtype=torch.bool)}
        if config.low_res:
            cond |= {"low_res": x, "low_res_noise": torch.zeros(2)}
        network(x, torch.zeros(2), **cond).square().mean().backward()
        return len(seen), others


@pytest.mark.parametrize("shard", [1, 2])
@pytest.mark.parametrize("config", [UNET, EFFICIENT], ids=["guided", "efficient"])
def test_pictures_are_channels_last_at_every_convolution(config, shard):
    for checkpointing in ("none", "full"):
        seen, others = run_on_ranks(2, layouts, config, shard, checkpointing)[0]
        assert seen >= sum(isinstance(module, nn.Conv2d) for module in UNet(config).modules())
        assert set(others) <= {"gradient of conv_out"}  # three channels, and of the loss, which is not the network's


def test_weights_are_channels_last_after_a_checkpoint(shards, tmp_path):
    what = experiment(steps=2)
    go(what, shards, tmp_path)
    run = TrainingRun(what, shards, tmp_path, ranks=Ranks(), report=lambda line: None)
    assert run.step == 2
    convolutions = [module for module in run.unet.modules() if isinstance(module, nn.Conv2d)]
    assert convolutions and all(is_nhwc(module.weight) for module in convolutions)
    assert all(is_nhwc(average) for average in run.checkpointer.ema.weights.values() if average.ndim == 4)
