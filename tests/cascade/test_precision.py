"""Check that bfloat16 weights give nearly the same images and reject operations that need float32."""

from pathlib import Path

import pytest
import torch
from torch import nn

import imagen
from imagen.cascade import SamplingConfig, Stage, StageConfig
from imagen.cascade.cascade import Cascade
from imagen.errors import UserError
from imagen.models.config import Level, UNetConfig
from imagen.models.unet import UNet
from imagen.text.config import TextConfig


class FixedEncoder:
    """Encodes every prompt as the same two tokens."""

    def encode(self, prompts: list[str]) -> list[torch.Tensor]:
        return [torch.linspace(-1, 1, 16).reshape(2, 8)] * len(prompts)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    levels = (Level(channels=16, blocks=1, stride=1), Level(channels=16, blocks=1, attention="fused"))
    unet = UNetConfig(levels=levels, text_width=8, context_width=16, time_width=16, head_channels=8)
    network = UNet(unet)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.3)
    stage = Stage(StageConfig(resolution=16, unet=unet, sampling=SamplingConfig(steps=3)), network)
    text = TextConfig(width=8)
    Cascade([stage], text=text, unconditional=torch.zeros(1, 8)).save(tmp_path / "cascade")
    return tmp_path / "cascade"


def test_bfloat16_weights_halve_the_memory_and_give_the_same_images(saved: Path, tmp_path: Path) -> None:
    full, half = imagen.load(saved), imagen.load(saved, precision="bf16")
    for cascade in (full, half):
        assert cascade.texts is not None
        cascade.texts.encoder = FixedEncoder()
    request = {"prompts": ["a", "b"], "seeds": [1, 2], "precision": "bf16", "progress": False}
    assert half.sample(**request) == full.sample(**request)
    sizes = [sum(p.nbytes for p in c.stages[0].unet.parameters()) for c in (half, full)]
    assert sizes[0] < 0.6 * sizes[1]
    with pytest.raises(UserError, match=r"stage 16 cannot be sampled in fp32: .* loaded in bf16; load"):
        half.sample(["a"], precision="fp32", progress=False)
    with pytest.raises(UserError, match=r"stage 16 cannot be saved: .* loaded in bf16"):
        half.save(tmp_path / "copy")
    assert not (tmp_path / "copy").exists()
