"""Test adding an outer level: the trained weights are unchanged, and only the necessary ones are new."""

from pathlib import Path

import pytest
import torch

from imagen.cascade import Cascade, export_stage
from imagen.emoji.fluent.grow import grow, grown_weights
from imagen.emoji.fluent.presets import fluent_32, fluent_64
from imagen.errors import UserError
from imagen.models.unet import UNet


def test_inner_weights_are_unchanged(tmp_path: Path) -> None:
    small = fluent_32()
    torch.manual_seed(1)
    trained = {name: torch.randn_like(value) for name, value in UNet(small.stage.unet).state_dict().items()}
    assert small.text is not None
    export_stage(
        tmp_path / "small",
        stage=small.stage,
        text=small.text,
        weights=trained,
        unconditional=torch.zeros(1, small.text.width),
        info={"step": 7},
    )
    grow(tmp_path / "small", tmp_path / "large")
    stage = Cascade.load(tmp_path / "large").stages[0]
    grown = stage.unet.state_dict()
    assert stage.config.resolution == 64 and stage.info["grown_from"] == {"step": 7}
    assert torch.equal(grown["conv_in.weight"], trained["conv_in.weight"])
    assert torch.equal(grown["down.1.blocks.0.residual.conv1.weight"], trained["down.0.blocks.0.residual.conv1.weight"])
    assert torch.equal(grown["down.3.blocks.0.attention.to_q.weight"], trained["down.2.blocks.0.attention.to_q.weight"])
    assert torch.equal(grown["up.2.blocks.1.residual.conv2.weight"], trained["up.2.blocks.1.residual.conv2.weight"])
    assert not grown["conv_out.weight"].any()  # as in a new network
    new = sum(
        value.numel() for name, value in grown.items() if name.startswith(("down.0", "up.3", "norm_out", "conv_"))
    )
    assert new < sum(value.numel() for value in grown.values()) / 40


def test_weights_of_another_network_are_an_error() -> None:
    other = UNet(fluent_64().stage.unet).state_dict()
    with pytest.raises(UserError, match="not the weights of the same network"):
        grown_weights(other, fluent_64().stage.unet)
