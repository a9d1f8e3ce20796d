"""Define the published U-Net structures of DeepFloyd IF, and small ones of the same kind."""

from typing import Any

_RESNET, _CROSS = "Resnet{}sampleBlock2D", "SimpleCrossAttn{}Block2D"


def unet_config(channels: list[int], blocks: int | list[int], attends: list[bool], **changes: Any) -> dict[str, Any]:
    """Return the fields of `unet/config.json` that IF sets; the others have diffusers' defaults."""
    return {
        "act_fn": "gelu",
        "addition_embed_type": "text",
        "attention_head_dim": 64,
        "block_out_channels": channels,
        "cross_attention_norm": "group_norm",
        "down_block_types": [_CROSS.format("Down") if each else _RESNET.format("Down") for each in attends],
        "encoder_hid_dim": 4096,
        "in_channels": 3,
        "layers_per_block": blocks,
        "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
        "out_channels": 6,
        "resnet_time_scale_shift": "scale_shift",
        "sample_size": 64,
        "up_block_types": [_CROSS.format("Up") if each else _RESNET.format("Up") for each in reversed(attends)],
        **changes,
    }


SUPER_RESOLUTION: dict[str, Any] = {
    "class_embed_type": "timestep",
    "in_channels": 6,
    "mid_block_scale_factor": 1 / 0.7071,
    "resnet_out_scale_factor": 1 / 0.7071,
    "resnet_skip_time_act": True,
    "time_embedding_act_fn": "gelu",
}
I_XL = unet_config([704, 1408, 2112, 2816], 3, [False, True, True, True], cross_attention_dim=2816)
I_M = unet_config([192, 384, 576, 768], 3, [False, True, True, True], cross_attention_dim=768)
II_L = unet_config(
    [160, 320, 640, 960, 1280],
    [2, 2, 3, 5, 5],
    [False, False, False, True, True],
    cross_attention_dim=1280,
    time_embedding_dim=1280,
    sample_size=256,
    **SUPER_RESOLUTION,
)

_SMALL: dict[str, Any] = {
    "attention_head_dim": 8,
    "encoder_hid_dim": 24,
    "cross_attention_dim": 64,
    "addition_embed_type_num_heads": 4,
}
SMALL_I = unet_config([32, 64, 64], 2, [False, True, True], **_SMALL | {"sample_size": 16})
SMALL_II = unet_config(
    [32, 32, 64], [1, 2, 2], [False, True, True], **_SMALL, **SUPER_RESOLUTION | {"sample_size": 32},
    time_embedding_dim=64,
)  # fmt: skip
SMALL_III = unet_config(
    [32, 32, 64], [1, 2, 1], [False, False, True], **_SMALL, **SUPER_RESOLUTION | {"sample_size": 64},
    only_cross_attention=True, time_embedding_dim=64,
)  # fmt: skip
