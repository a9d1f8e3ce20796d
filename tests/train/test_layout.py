"""Test that images are channels-last at every convolution, sharded or not, and after a checkpoint."""

from dataclasses import replace

import pytest
import torch
from ranks import run_on_ranks
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from toy import UNET, experiment, train_quietly

from imagen.models.config import Level
from imagen.models.unet import UNet
from imagen.train.config import ParallelConfig
from imagen.train.parallel import build_mesh, parallelize
from imagen.train.ranks import Ranks, process_group
from imagen.train.setup import TrainingRun

EFFICIENT = replace(
    UNET,
    levels=(Level(channels=32, blocks=1), Level(channels=64, blocks=2, attention="fused", feed_forward=2)),
    family="efficient",
    low_res=True,
)


def is_nhwc(x):
    """Return whether `x` is channels-last, or a slice of such channels, as in the gradient of a concatenation."""
    (channel, height, width), columns = x.stride()[1:], x.shape[-1]
    return channel == 1 and height == columns * width


class Convolutions(TorchDispatchMode):
    """Counts convolutions, and records their tensors that are not channels-last.

    Ignores gradients with three channels: they come from the loss, not from the network.
    """

    def __init__(self):
        super().__init__()
        self.forward, self.backward, self.others = 0, 0, []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        if function is torch.ops.aten.convolution.default:
            self.forward += 1
            self._record(image=args[0], weight=args[1], out=out)
        elif function is torch.ops.aten.convolution_backward.default:
            self.backward += 1
            gradients = {} if args[0].shape[1] == 3 else {"gradient": args[0]}
            self._record(**gradients, saved=args[1], weight=args[2], of_image=out[0], of_weight=out[1])
        return out

    def _record(self, **tensors):
        shapes = [(name, tuple(x.shape)) for name, x in tensors.items() if x is not None and not is_nhwc(x)]
        self.others += shapes


def layouts(config, shard, checkpointing, dtype):
    with process_group() as ranks:
        torch.manual_seed(0)
        unet = UNet(config)
        parallel = ParallelConfig(shard=shard, checkpointing=checkpointing)
        mesh = build_mesh(parallel, "cpu", ranks.world_size)
        if mesh is None:
            unet.to(memory_format=torch.channels_last)
        network = parallelize(unet, parallel, mesh, ranks.world_size, dtype=dtype)
        x = torch.randn(2, 3, 16, 16).contiguous(memory_format=torch.channels_last)
        cond = {"text": torch.randn(2, 5, 8), "text_mask": torch.ones(2, 5, dtype=torch.bool)}
        if config.low_res:
            cond |= {"low_res": x, "low_res_noise": torch.zeros(2)}
        with Convolutions() as seen:
            network(x, torch.zeros(2), **cond).square().mean().backward()
        return seen.forward, seen.backward, seen.others


@pytest.mark.parametrize("shard", [1, 2])
@pytest.mark.parametrize("config", [replace(UNET, middle=True), EFFICIENT], ids=["guided", "efficient"])
def test_images_and_weights_are_channels_last_at_every_convolution(config, shard):
    count = sum(isinstance(module, nn.Conv2d) for module in UNet(config).modules())
    for checkpointing, forwards in (("none", count), ("full", count + 1)):
        forward, backward, others = run_on_ranks(2, layouts, config, shard, checkpointing, None)[0]
        assert forward >= forwards and backward == count
        assert not others


def test_weights_are_channels_last_after_a_checkpoint(shards, tmp_path):
    what = experiment(steps=2)
    train_quietly(what, shards, tmp_path)
    run = TrainingRun(what, shards, tmp_path, ranks=Ranks(), report=lambda line: None)
    assert run.step == 2
    convolutions = [module for module in run.unet.modules() if isinstance(module, nn.Conv2d)]
    assert convolutions and all(is_nhwc(module.weight) for module in convolutions)
    assert all(is_nhwc(average) for average in run.checkpointer.ema.weights.values() if average.ndim == 4)
