"""Every network is one graph for torch.compile, and stays the same one."""

from dataclasses import replace

import pytest
import torch
from test_unet import STRUCTURES

from imagen.models.config import UNetConfig
from imagen.models.unet import UNet
from imagen.presets import PRESETS, preset
from imagen.train.parallel import ParallelConfig, recompute


def shortened(config: UNetConfig) -> UNetConfig:
    """With one block a level, two where only the last attends: every kind of block that there is, and less to trace."""
    levels = [replace(level, blocks=min(level.blocks, 1 + (level.attend == "last"))) for level in config.levels]
    return replace(config, levels=tuple(levels))


def distinct() -> dict[str, UNetConfig]:
    """The presets' structures, one of those that differ in widths alone."""
    found: dict[object, tuple[str, UNetConfig]] = {}
    for name in PRESETS:
        config = shortened(preset(name).stage.unet)
        levels = tuple(replace(level, channels=2) for level in config.levels)
        widths = {"time_width": 1, "context_width": 1, "head_channels": 1, "stem_channels": None, "norm_groups": 1}
        wide = {"text_width": config.text_width and 1}
        found.setdefault(replace(config, levels=levels, **widths, **wide), (name, config))
    return dict(found.values())


def inputs(config: UNetConfig, device="meta"):
    side = config.total_stride * 4
    draw = lambda *shape: torch.randn(*shape, device=device)  # noqa: E731
    x, label = draw(2, config.image_channels, side, side), draw(2)
    cond = {}
    if config.text_width:
        cond = {"text": draw(2, 5, config.text_width), "text_mask": torch.ones(2, 5, dtype=torch.bool, device=device)}
    if config.low_res:
        cond |= {"low_res": x, "low_res_noise": label}
    return x, label, cond


@pytest.fixture(autouse=True)
def nothing_compiled():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


CONFIGS = {**{name: shortened(config) for name, config in STRUCTURES.items()}, **distinct()}


@pytest.mark.parametrize("name", CONFIGS)
def test_a_network_is_one_graph(name):
    """In training with recomputation, and in sampling with the text read before."""
    config = CONFIGS[name]
    with torch.device("meta"):
        unet = UNet(config)
    x, label, cond = inputs(config)
    # What follows dynamo sees the same operations in all of them, and takes most of the time.
    unet.compile(fullgraph=True, backend="aot_eager" if name in STRUCTURES else "eager", dynamic=False)
    recompute(unet, ParallelConfig(checkpointing="full"))
    unet(x, label, **cond).sum().backward()
    assert all(parameter.grad is not None for parameter in unet.parameters())
    if config.text_width:
        with torch.no_grad():
            cond["text"] = unet.read(cond["text"], cond["text_mask"])
            assert unet(x, label, **cond).shape[0] == 2


def test_the_graph_computes_what_the_network_computes():
    config = STRUCTURES["guided"]
    torch.manual_seed(0)
    unet = UNet(config)
    with torch.no_grad():
        for parameter in unet.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    x, label, cond = inputs(config, "cpu")
    expected = unet(x, label, **cond)
    unet.compile(fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(unet(x, label, **cond), expected)
