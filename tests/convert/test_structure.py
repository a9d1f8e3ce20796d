"""Compare our U-Net with that of diffusers, with random weights."""

from typing import Any

import pytest
import torch
from pipelines import random_unet
from published import I_M, I_XL, II_L, SMALL_I, SMALL_II, SMALL_III
from torch import Tensor, nn

from imagen.convert.structure import read_unet_config, write_unet_config
from imagen.errors import UserError
from imagen.models.diffusers_names import theirs, to_ours, to_theirs
from imagen.models.unet import UNet

UNet2DConditionModel = pytest.importorskip("diffusers").UNet2DConditionModel

MIXED = SMALL_III | {"only_cross_attention": [False, False, True]}  # the middle block then also attends to pixels
ODD = SMALL_I | {"act_fn": "silu", "norm_num_groups": 8, "out_channels": 3, "mid_block_only_cross_attention": True}


def converted(unet: nn.Module, config: dict[str, Any]) -> UNet:
    ours = read_unet_config(config, "config.json")
    with torch.device("meta"):
        result = UNet(ours)
    result.load_state_dict(to_ours(unet.state_dict(), ours, "weights"), assign=True)
    return result.eval()


def conditions(config: dict[str, Any], side: int = 16) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    x, low = torch.randn(2, 2, 3, side, side, generator=generator)
    text = torch.randn(2, 7, config["encoder_hid_dim"], generator=generator)
    cond = {"text": text, "text_mask": torch.ones(2, 7, dtype=torch.bool)}
    if config["in_channels"] == 6:
        cond |= {"low_res": low, "low_res_noise": torch.tensor([250, 3])}
    return x, torch.tensor([999, 40]), cond


@pytest.mark.parametrize(
    "config",
    [SMALL_I, SMALL_II, SMALL_III, MIXED, ODD],
    ids=["I", "II", "III", "cross-and-fused", "other-settings"],
)
@torch.no_grad()
def test_outputs_equal_those_of_diffusers(config: dict[str, Any]) -> None:
    unet = random_unet(config)
    x, time, cond = conditions(config)
    seen = torch.cat([x, cond["low_res"]], 1) if "low_res" in cond else x
    expected = unet(seen, time, encoder_hidden_states=cond["text"], class_labels=cond.get("low_res_noise")).sample
    actual = converted(unet, config)(x, time, **cond)
    assert expected.std() > 0.1
    torch.testing.assert_close(actual, expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize(
    ("config", "parameters"), [(I_XL, 4_304_695_110), (I_M, 371_605_830), (II_L, 1_243_277_190)], ids=["XL", "M", "L"]
)
def test_parameter_counts_equal_the_published_ones(config: dict[str, Any], parameters: int) -> None:
    with torch.device("meta"):
        unet = UNet2DConditionModel(**config)
        tensors = to_ours(unet.state_dict(), read_unet_config(config, "config.json"), "weights")
    assert sum(tensor.numel() for tensor in tensors.values()) == parameters
    assert {theirs(name) for name in tensors} == set(unet.state_dict())


@pytest.mark.parametrize("config", [SMALL_I, SMALL_II, SMALL_III, MIXED, ODD, I_XL, II_L])
def test_configs_round_trip(config: dict[str, Any]) -> None:
    ours = read_unet_config(config, "config.json")
    if not ours.learned_variance:
        with pytest.raises(UserError, match="learned_variance"):
            write_unet_config(ours, 64, "stage 64")
        return
    written = write_unet_config(ours, 64, "stage 64")
    assert read_unet_config(written, "again") == ours
    with torch.device("meta"):  # diffusers accepts every field of the written config and builds the same tensors
        first = UNet2DConditionModel(**config).state_dict()
        again = UNet2DConditionModel(**{k: v for k, v in written.items() if k[0] != "_"}).state_dict()
    assert {key: value.shape for key, value in first.items()} == {key: value.shape for key, value in again.items()}


def test_tensors_round_trip_bit_exactly() -> None:
    unet = random_unet(SMALL_II)
    back = to_theirs(to_ours(unet.state_dict(), read_unet_config(SMALL_II, "config.json"), "weights"))
    assert back.keys() == unet.state_dict().keys()
    assert all(torch.equal(back[key], value) for key, value in unet.state_dict().items())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"act_fn": "mish"}, "act_fn is 'mish'"),
        ({"act_fn": ["silu"]}, r"act_fn is \['silu'\]; it must be a name"),
        ({"addition_embed_type_num_heads": [64]}, r"num_heads is \[64\]; it must be a whole number"),
        ({"norm_num_groups": None}, "norm_num_groups is None; it must be a whole number"),
        ({"encoder_hid_dim": "wide"}, "encoder_hid_dim is 'wide'; it must be a whole number or null"),
        ({"time_embedding_dim": 2.5}, "time_embedding_dim is 2.5; it must be a whole number or null"),
        ({"resnet_out_scale_factor": "much"}, "resnet_out_scale_factor is 'much'; it must be a number"),
        ({"dropout": None}, "dropout is None; it must be a number"),
        ({"down_block_types": 10**9}, "down_block_types is 1,000,000,000; it must be a list of names"),
        ({"up_block_types": [{}] * 3}, r"up_block_types is .*; it must be a list of names"),
        ({"block_out_channels": [10**9] * 3}, "channels is 1,000,000,000; it must be at least 1 and at most 65536"),
        ({"layers_per_block": 10**9}, "blocks is 1,000,000,000; it must be"),
        ({"encoder_hid_dim": 10**9}, "text_width is 1,000,000,000; it must be"),
        ({"cross_attention_norm": None}, "cross_attention_norm is None"),
        ({"resnet_time_scale_shift": "default"}, "resnet_time_scale_shift is 'default'"),
        ({"class_embed_type": "projection"}, "class_embed_type is 'projection'"),
        ({"in_channels": 4}, "in_channels is 4"),
        ({"encoder_hid_dim": None}, "encoder_hid_dim is None"),
        ({"resnet_skip_time_act": True}, "time_embedding_act_fn is None"),
        ({"mid_block_scale_factor": 2.0}, "mid_block_scale_factor is 2.0"),
        ({"attention_head_dim": [8, 8, 16]}, "attention_head_dim"),
        ({"block_out_channels": None}, "block_out_channels is None"),
        ({"layers_per_block": [2, 2]}, "a list of 3"),
        ({"down_block_types": ["DownBlock2D"] * 3}, "down_block_types has 'DownBlock2D'"),
        ({"up_block_types": ["ResnetUpsampleBlock2D"] * 3}, "up_block_types"),
        ({"some_new_field": 3}, "field 'some_new_field' is 3"),
    ],
)
def test_unsupported_structures_are_rejected(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        read_unet_config(SMALL_I | changes, "unet/config.json")
    assert str(caught.value).startswith("unet/config.json: ")


def test_tensors_that_do_not_match_are_rejected() -> None:
    config = read_unet_config(SMALL_I, "config.json")
    tensors = random_unet(SMALL_I).state_dict()
    with pytest.raises(UserError, match=r"weights: tensor 'conv_in.bias' is missing"):
        to_ours({key: value for key, value in tensors.items() if key != "conv_in.bias"}, config, "weights")
    with pytest.raises(UserError, match=r"'conv_in.bias' has shape \(5,\), config.json needs \(32,\)"):
        to_ours(tensors | {"conv_in.bias": torch.zeros(5)}, config, "weights")
    with pytest.raises(UserError, match=r"'extra.a' and 1 more is not in the U-Net"):
        to_ours(tensors | {"extra.a": torch.zeros(5), "extra.b": torch.zeros(5)}, config, "weights")
