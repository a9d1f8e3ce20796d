"""Convert between `unet/config.json` of diffusers' UNet2DConditionModel and our `UNetConfig`.

The features of DeepFloyd IF's three stages are supported, at any size. For all other features of UNet2DConditionModel
an error names the field, so that nothing is silently converted wrongly.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from imagen.errors import UserError, quoted
from imagen.models.config import Level, UNetConfig
from imagen.models.layers import CONTEXT_GROUPS, AttentionKind

_DOWN = {"ResnetDownsampleBlock2D": False, "SimpleCrossAttnDownBlock2D": True}  # whether it has attention
_UP = {"ResnetUpsampleBlock2D": False, "SimpleCrossAttnUpBlock2D": True}

# Fields with one value in IF. The first value is diffusers' default, or IF's if that differs. It is assumed if the
# field is absent, because files of older versions lack newer fields.
_FIXED: dict[str, tuple[Any, ...]] = {
    "addition_embed_type": ("text",),
    "addition_time_embed_dim": (None,),
    "attention_type": ("default",),
    "center_input_sample": (False,),
    "class_embeddings_concat": (False,),
    "conv_in_kernel": (3,),
    "conv_out_kernel": (3,),
    "cross_attention_norm": ("group_norm",),
    "dual_cross_attention": (False,),
    "encoder_hid_dim_type": (None, "text_proj"),  # None with an encoder_hid_dim means text_proj
    "flip_sin_to_cos": (True,),
    "freq_shift": (0,),
    "mid_block_type": ("UNetMidBlock2DSimpleCrossAttn",),
    "norm_eps": (1e-5,),
    "num_attention_heads": (None,),
    "num_class_embeds": (None,),
    "projection_class_embeddings_input_dim": (None,),
    "resnet_time_scale_shift": ("scale_shift",),
    "time_cond_proj_dim": (None,),
    "time_embedding_type": ("positional",),
    "timestep_post_act": (None,),
}
_REQUIRED = ("addition_embed_type", "cross_attention_norm", "mid_block_type", "resnet_time_scale_shift")
# Fields without effect on these blocks.
_IGNORED = {
    *("downsample_padding", "reverse_transformer_layers_per_block", "transformer_layers_per_block"),
    *("upcast_attention", "use_linear_projection"),
}
_READ = {
    *("act_fn", "addition_embed_type_num_heads", "attention_head_dim", "block_out_channels", "class_embed_type"),
    *("cross_attention_dim", "down_block_types", "dropout", "encoder_hid_dim", "in_channels", "layers_per_block"),
    *("mid_block_only_cross_attention", "mid_block_scale_factor", "norm_num_groups", "only_cross_attention"),
    *("out_channels", "resnet_out_scale_factor", "resnet_skip_time_act", "sample_size", "time_embedding_act_fn"),
    *("time_embedding_dim", "up_block_types"),
}


_TYPES: tuple[tuple[tuple[str, ...], tuple[type, ...], str], ...] = (
    (("addition_embed_type_num_heads", "in_channels", "norm_num_groups", "out_channels"), (int,), "a whole number"),
    (("encoder_hid_dim", "time_embedding_dim"), (int, type(None)), "a whole number or null"),
    (("dropout", "mid_block_scale_factor", "resnet_out_scale_factor"), (int, float), "a number"),
    (("down_block_types", "up_block_types"), (list, tuple), "a list of names"),
    (("act_fn",), (str,), "a name"),
    (("resnet_skip_time_act",), (bool,), "true or false"),
    (("mid_block_only_cross_attention",), (bool, type(None)), "true, false or null"),
)


def read_unet_config(config: Mapping[str, Any], where: str) -> UNetConfig:
    """Return the `UNetConfig` of a `unet/config.json`. Raises UserError, with `where` and the field, if unsupported."""

    def refuse(field: str, wanted: str) -> UserError:
        return UserError(f"{where}: {field} is {config.get(field)!r}; only U-Nets with {wanted} are supported")

    for field in sorted(config.keys() - _READ - _FIXED.keys() - _IGNORED):
        if config[field] and not field.startswith("_"):
            raise UserError(
                f"{where}: field {field!r} is {config[field]!r}, which this version of imagen does not support"
            )
    for field, values in _FIXED.items():
        absent = None if field in _REQUIRED else values[0]
        if config.get(field, absent) not in values:
            raise refuse(field, " or ".join(repr(value) for value in values))

    _check_types(config, where)
    channels = _integers(config, "block_out_channels", where)
    levels = len(channels)
    blocks = _each(config, "layers_per_block", 2, levels, where)
    heads = _each(config, "attention_head_dim", 8, levels, where)
    cross = _each(config, "cross_attention_dim", 1280, levels, where)
    only_cross = _each(config, "only_cross_attention", False, levels, where)
    attends = [_known(_DOWN, name, "down_block_types", where) for name in config.get("down_block_types", ())]
    attends_up = [_known(_UP, name, "up_block_types", where) for name in config.get("up_block_types", ())]
    if len(attends) != levels or attends_up[::-1] != attends:
        raise refuse("up_block_types", f"{levels} blocks in each path, the up path mirroring the down path")
    if len(set(heads)) > 1 or len(set(cross)) > 1:
        raise refuse("attention_head_dim" if len(set(heads)) > 1 else "cross_attention_dim", "one value for all levels")
    if config.get("encoder_hid_dim") is None:
        raise refuse("encoder_hid_dim", "a text projection")

    act, once = config.get("act_fn", "silu"), config.get("time_embedding_act_fn")
    if act not in ("silu", "gelu"):
        raise refuse("act_fn", "'silu' or 'gelu'")
    # The activation of the summed embedding is applied once: either in each block, or before all blocks.
    if once not in (None, act) or (once is not None) != bool(config.get("resnet_skip_time_act", False)):
        raise refuse("time_embedding_act_fn", "act_fn there and resnet_skip_time_act, or neither")
    divisor = config.get("resnet_out_scale_factor", 1.0)
    if config.get("mid_block_scale_factor", 1.0) != divisor:
        raise refuse("mid_block_scale_factor", f"that of resnet_out_scale_factor, {divisor}")

    image = 3
    low_res = config.get("class_embed_type") is not None
    if config.get("class_embed_type") not in (None, "timestep"):
        raise refuse("class_embed_type", "None (stage I) or 'timestep' (super-resolution)")
    if config.get("in_channels") != image * (1 + low_res):
        raise refuse("in_channels", f"{image * (1 + low_res)} (class_embed_type {config.get('class_embed_type')!r})")
    if config.get("out_channels") not in (image, 2 * image):
        raise refuse("out_channels", "3 or 6")

    middle = config.get("mid_block_only_cross_attention")
    if middle is None:
        middle = config.get("only_cross_attention", False)
    try:
        return UNetConfig(
            levels=tuple(
                Level(
                    channels=channels[i],
                    blocks=blocks[i],
                    stride=1 if i == 0 else 2,
                    attention=_kind(only_cross[i]) if attends[i] else "none",
                )
                for i in range(levels)
            ),
            low_res=low_res,
            learned_variance=config["out_channels"] == 2 * image,
            text_width=config["encoder_hid_dim"],
            context_width=cross[0],
            time_width=config.get("time_embedding_dim") or 4 * channels[0],
            head_channels=heads[0],
            norm_groups=config.get("norm_num_groups", 32),
            resample="residual",
            # A list of only_cross_attention does not cover the middle block, which then also attends to pixels.
            middle_attention=_kind(middle is True),
            activation=act,
            context_norm="group",
            pooling_heads=config.get("addition_embed_type_num_heads", 64),
            residual_divisor=float(divisor),
            dropout=float(config.get("dropout", 0.0)),
        )
    except UserError as error:  # a value out of bounds
        raise UserError(f"{where}: {error}") from None


def write_unet_config(config: UNetConfig, resolution: int, where: str) -> dict[str, Any]:
    """Return `unet/config.json` of a U-Net. Raises UserError, with `where`, if UNet2DConditionModel cannot express it.

    resolution: side of the images, in pixels.
    """
    for reason in _inexpressible(config):
        raise UserError(f"{where}: diffusers cannot express it: {reason}")
    channels, last = [level.channels for level in config.levels], config.levels[-1]
    attends = [level.attention != "none" for level in config.levels]
    down, up = ({value: key for key, value in names.items()} for names in (_DOWN, _UP))
    # The last value: None for most fields that allow None, and "text_proj" for encoder_hid_dim_type.
    fixed = {field: values[-1] for field, values in _FIXED.items()}
    return {
        "_class_name": "UNet2DConditionModel",
        **fixed,
        "act_fn": config.activation,
        "addition_embed_type_num_heads": config.pooling_heads or max((config.text_width or 0) // 64, 1),
        "attention_head_dim": config.head_channels,
        "block_out_channels": channels,
        "class_embed_type": "timestep" if config.low_res else None,
        "cross_attention_dim": config.context_width,
        "down_block_types": [down[each] for each in attends],
        "dropout": config.dropout,
        "encoder_hid_dim": config.text_width,
        "in_channels": config.image_channels * (1 + config.low_res),
        "layers_per_block": [level.blocks for level in config.levels],
        "mid_block_only_cross_attention": (config.middle_attention or last.attention) == "cross",
        "mid_block_scale_factor": config.residual_divisor,
        "norm_num_groups": config.norm_groups,
        "only_cross_attention": [level.attention == "cross" for level in config.levels],
        "out_channels": config.image_channels * (1 + config.learned_variance),
        "resnet_out_scale_factor": config.residual_divisor,
        "resnet_skip_time_act": True,  # apply the activation once, not in each block: an equal result
        "sample_size": resolution,
        "time_embedding_act_fn": config.activation,
        "time_embedding_dim": config.time_width,
        "up_block_types": [up[each] for each in reversed(attends)],
    }


def _inexpressible(config: UNetConfig) -> list[str]:
    """Return the reasons why UNet2DConditionModel or the IF pipelines cannot express this U-Net."""
    middle = config.middle_attention or config.levels[-1].attention
    kinds = [level.attention for level in config.levels]
    stem = config.stem_channels or config.levels[0].channels
    checks = [
        (config.family == "guided", "family is 'efficient'; only 'guided' has a counterpart"),
        (config.resample == "residual", f"resample is {config.resample!r}, not 'residual'"),
        (config.levels[0].stride == 1, "its first level has a stride"),
        (all(level.stride == 2 for level in config.levels[1:]), "a level below the first has a stride that is not 2"),
        (config.text_width is not None, "it is not conditioned on text"),
        (config.context_norm == "group", "context_norm is 'layer'; only 'group' has a counterpart"),
        (config.middle and middle in ("cross", "fused"), "its middle block does not attend to text"),
        ("self" not in kinds, "a level has attention 'self', without text"),
        (all(level.attend == "each" for level in config.levels), "a level has attention only after its last block"),
        (not any(level.feed_forward for level in config.levels), "a level has feed_forward layers"),
        (config.shortcut == "identity", "shortcut is 'conv'"),
        (config.image_channels == 3, "image_channels is not 3"),
        (config.patch == 1, f"patch is {config.patch}"),
        (not config.coordinates, "coordinates is true"),
        (stem == config.levels[0].channels, "stem_channels differs from the first level's"),
        (config.learned_variance, "learned_variance is false, and the IF pipelines split off a variance"),
        (config.context_width % CONTEXT_GROUPS == 0, f"context_width is not divisible by {CONTEXT_GROUPS}"),
        (
            all(level.channels % config.norm_groups == 0 for level in config.levels),
            f"a level's channels are not divisible by norm_groups {config.norm_groups}",
        ),
    ]
    return [reason for fits, reason in checks if not fits]


def _check_types(config: Mapping[str, Any], where: str) -> None:
    """Raise UserError for a field of the wrong type."""
    for fields, kinds, wanted in _TYPES:
        for field in fields:
            if field in config and type(config[field]) not in kinds:
                raise UserError(f"{where}: {field} is {quoted(config[field])}; it must be {wanted}")
    for field in ("down_block_types", "up_block_types"):
        if not all(isinstance(name, str) for name in config.get(field, ())):
            raise UserError(f"{where}: {field} is {quoted(config[field])}; it must be a list of names")


def _kind(only_cross: bool) -> AttentionKind:
    return "cross" if only_cross else "fused"


def _integers(config: Mapping[str, Any], field: str, where: str) -> list[int]:
    value = config.get(field)
    if not isinstance(value, list | tuple) or not value or not all(type(item) is int for item in value):
        raise UserError(f"{where}: {field} is {value!r}; it must be a list of whole numbers")
    return list(value)


def _each(config: Mapping[str, Any], field: str, default: Any, levels: int, where: str) -> list[Any]:
    """Return a field as a list with one value per level, from a list or one value for all."""
    value = config.get(field, default)
    values = list(value) if isinstance(value, list | tuple) else [value] * levels
    if len(values) != levels or any(type(item) is not type(default) for item in values):
        raise UserError(f"{where}: {field} is {value!r}; it must be {type(default).__name__}, or a list of {levels}")
    return values


def _known(names: Mapping[str, bool], name: str, field: str, where: str) -> bool:
    if name not in names:
        known: Sequence[str] = sorted(names)
        raise UserError(f"{where}: {field} has {name!r}; known are {' and '.join(known)}")
    return names[name]
