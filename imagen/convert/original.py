"""Convert DeepFloyd IF's original format, `config.yml` and `pytorch_model.bin`, to diffusers' configs and names.

The network has the modules of guided diffusion: input_blocks, numbered through all levels, middle_block and
output_blocks. Queries, keys and values of attention are one tensor, in which the three parts of each head are adjacent.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from imagen.errors import UserError
from imagen.files import open_given

CONFIG, WEIGHTS = "config.yml", "pytorch_model.bin"
MOST = 2**16  # of any number in the config
MOST_BYTES = 2**16  # of config.yml; published ones have about one thousand
NOISING = {"beta_schedule": "squaredcos_cap_v2"}  # of every stage, for images and for conditioning augmentation
_WHOLE = {
    *("att_pool_heads", "encoder_channels", "encoder_dim", "image_size", "in_channels", "model_channels"),
    *("num_head_channels", "out_channels"),
}
_NEEDED = {*_WHOLE, "activation", "attention_resolutions", "channel_mult", "num_res_blocks"}
_FIXED = {"dims": 2, "num_classes": None, "interpolate_mode": "bilinear"}  # optional
_REQUIRED = {"resblock_updown": True, "use_scale_shift_norm": True}
_OPTIONAL = {"disable_self_attentions", "dropout", "efficient_activation", "scale_skip_connection"}
_IGNORED = {"conv_resample", "num_heads", "num_heads_upsample", "precision"}  # without effect here

# Original format, diffusers.
_OUTSIDE = {
    "input_blocks.0.0": "conv_in",
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "aug_proj.0": "class_embedding.linear_1",
    "aug_proj.2": "class_embedding.linear_2",
    "encoder_proj": "encoder_hid_proj",
    "encoder_pooling.0": "add_embedding.norm1",
    "encoder_pooling.1": "add_embedding.pool",
    "encoder_pooling.2": "add_embedding.proj",
    "encoder_pooling.3": "add_embedding.norm2",
    "middle_block.0": "mid_block.resnets.0",
    "middle_block.1": "mid_block.attentions.0",
    "middle_block.2": "mid_block.resnets.1",
    "out.0": "conv_norm_out",
    "out.2": "conv_out",
}
_INSIDE = {
    "in_layers.0.": "norm1.",
    "in_layers.2.": "conv1.",
    "emb_layers.1.": "time_emb_proj.",
    "out_layers.0.": "norm2.",
    "out_layers.3.": "conv2.",
    "skip_connection.": "conv_shortcut.",
    "norm.": "group_norm.",
    "norm_encoder.": "norm_cross.",
    "proj_out.": "to_out.0.",
}


class _NoAliasLoader(yaml.SafeLoader):
    """Load YAML without aliases, since a few hundred bytes with aliases can expand to gigabytes."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.events.AliasEvent):
            raise yaml.YAMLError("it has aliases, which configs of IF do not have")
        return super().compose_node(parent, index)


def read_params(folder: Path) -> Mapping[str, Any]:
    """Return the network's parameters in `config.yml`. Raises UserError, naming the field, if they are not IF's."""
    where = folder / CONFIG
    try:
        with open_given(where) as file:
            text = file.read(MOST_BYTES + 1)
        if len(text) > MOST_BYTES:
            raise UserError(f"{where} is not a config of IF: it has more than {MOST_BYTES} bytes")
        config = yaml.load(text, Loader=_NoAliasLoader)  # a SafeLoader
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UserError(f"{where} cannot be read as YAML: {error}") from None
    except RecursionError:
        raise UserError(f"{where} cannot be read as YAML: it is nested too deeply") from None
    params = config.get("params") if isinstance(config, dict) else None
    if not isinstance(params, dict):
        raise UserError(f"{where} has no `params`")
    if missing := sorted(_NEEDED - params.keys()):
        raise UserError(f"{where}: params.{missing[0]} is missing")
    for field in sorted(params.keys() - _NEEDED - _FIXED.keys() - _REQUIRED.keys() - _OPTIONAL - _IGNORED, key=str):
        if params[field]:
            raise UserError(f"{where}: params.{field} is {params[field]!r}; this version of imagen does not support it")
    for field, value in {**_FIXED, **_REQUIRED}.items():
        if params.get(field, None if field in _REQUIRED else value) != value:
            raise UserError(f"{where}: params.{field} is {params.get(field)!r}; only {value!r} is supported")
    for field in _WHOLE:
        if type(params[field]) is not int or not 1 <= params[field] <= MOST:
            raise UserError(f"{where}: params.{field} is {params[field]!r}; it must be a whole number up to {MOST}")
    if type(params.get("dropout") or 0) not in (int, float):
        raise UserError(f"{where}: params.dropout is {params['dropout']!r}; it must be a number")
    return params


def unet_config(params: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return diffusers' `unet/config.json` of the same network."""
    multipliers = _numbers(params, "channel_mult", where)
    levels, width = len(multipliers), params["model_channels"]
    blocks = _numbers(params, "num_res_blocks", where)
    attends, only_cross = (
        [2**level in _strides(params, field, where) for level in range(levels)]
        for field in ("attention_resolutions", "disable_self_attentions")
    )
    act, divisor = params["activation"], 1 / 0.7071 if params.get("scale_skip_connection") else 1.0
    down, up = (
        [f"SimpleCrossAttn{way}Block2D" if each else f"Resnet{way}sampleBlock2D" for each in attends]
        for way in ("Down", "Up")
    )
    return {
        "act_fn": act,
        "addition_embed_type": "text",
        "addition_embed_type_num_heads": params["att_pool_heads"],
        "attention_head_dim": params["num_head_channels"],
        "block_out_channels": [int(multiplier * width) for multiplier in multipliers],
        "class_embed_type": "timestep" if params["in_channels"] == 6 else None,
        "cross_attention_dim": params["encoder_channels"],
        "cross_attention_norm": "group_norm",
        "down_block_types": down,
        "dropout": params.get("dropout") or 0.0,
        "encoder_hid_dim": params["encoder_dim"],
        "in_channels": params["in_channels"],
        "layers_per_block": blocks * levels if len(blocks) == 1 else blocks,
        "mid_block_only_cross_attention": only_cross[-1],
        "mid_block_scale_factor": divisor,
        "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
        "only_cross_attention": only_cross,
        "out_channels": params["out_channels"],
        "resnet_out_scale_factor": divisor,
        "resnet_skip_time_act": bool(params.get("efficient_activation")),
        "resnet_time_scale_shift": "scale_shift",
        "sample_size": params["image_size"],
        "time_embedding_act_fn": act if params.get("efficient_activation") else None,
        "time_embedding_dim": int(max(multipliers) * width),
        "up_block_types": up[::-1],
    }


def scheduler_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the `scheduler_config.json` of a stage with this `unet/config.json`, with the constants in IF's code."""
    largest = 1.0 if config["class_embed_type"] else 1.5
    threshold = {"thresholding": True, "dynamic_thresholding_ratio": 0.95, "sample_max_value": largest}
    return {**NOISING, "variance_type": "learned_range", **threshold}


def read_tensors(folder: Path, config: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the weights under diffusers' names. Raises UserError if the file contains anything but tensors."""
    path = folder / WEIGHTS
    if not path.is_file():
        raise UserError(f"{folder} contains no {WEIGHTS}")
    try:
        tensors = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # torch raises many types for a damaged file
        first = str(error).partition("\n")[0]
        raise UserError(f"{path} is damaged, or contains more than tensors, which may run code: {first}") from None
    if not isinstance(tensors, dict) or not all(isinstance(tensor, Tensor) for tensor in tensors.values()):
        raise UserError(f"{path} is not a dictionary of tensors")
    return to_diffusers(tensors, config, str(path))


def to_diffusers(tensors: Mapping[str, Tensor], config: Mapping[str, Any], where: str) -> dict[str, Tensor]:
    """Return tensors of the original format under diffusers' names. config: their `unet/config.json`."""
    modules = dict(_modules(config["layers_per_block"], config["down_block_types"]))
    found = {}
    for name, tensor in tensors.items():
        _check_plain(name, tensor, where)
        match = re.match(r"(\w+_block(?:s\.\d+)?\.\d+|encoder_proj|[a-z_]+\.\d)\.(.+)", name)
        module = modules.get(match[1]) if match else None
        if match is None or module is None:
            raise UserError(f"{where}: tensor {name!r} is not in the U-Net of its {CONFIG}")
        inside = match[2]
        if tensor.ndim == 3:  # a 1x1 convolution
            tensor = tensor[..., 0]
        kind, _, last = inside.rpartition(".")
        if kind in ("qkv", "encoder_kv"):
            targets = ["to_q", "to_k", "to_v"] if kind == "qkv" else ["add_k_proj", "add_v_proj"]
            if kind == "qkv" and len(tensor) == len(tensors.get(f"{match[1]}.proj_out.bias", ())):
                del targets[1:]  # no self-attention
            head_channels = config["attention_head_dim"]
            if len(tensor) % (len(targets) * head_channels):
                raise UserError(f"{where}: tensor {name!r} does not divide into heads of {head_channels}")
            pieces = _split_heads(tensor, len(targets), head_channels)
            found.update({f"{module}.{to}.{last}": piece for to, piece in zip(targets, pieces, strict=True)})
            continue
        for first, diffusers in _INSIDE.items():
            if inside.startswith(first):
                inside = diffusers + inside[len(first) :]
                break
        found[f"{module}.{inside}"] = tensor
    return found


def _check_plain(name: object, tensor: Tensor, where: str) -> None:
    """Raise UserError unless the name is a string and the tensor dense, floating-point and 1- to 4-dimensional."""
    if not isinstance(name, str):
        raise UserError(f"{where}: {name!r} is not the name of a tensor")
    unusual = tensor.is_nested or tensor.is_quantized or tensor.layout != torch.strided or tensor.device.type != "cpu"
    if unusual or not tensor.is_floating_point() or not 1 <= tensor.ndim <= 4:
        raise UserError(f"{where}: tensor {name!r} is not a dense floating-point tensor of one to four dimensions")


def _split_heads(tensor: Tensor, parts: int, head_channels: int) -> Sequence[Tensor]:
    """Split [heads * parts * head_channels, ...] into `parts` tensors [heads * head_channels, ...]."""
    rest = tensor.shape[1:]
    return [part.reshape(-1, *rest) for part in tensor.reshape(-1, parts, head_channels, *rest).unbind(1)]


def _modules(blocks: Sequence[int], kinds: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield (original name, diffusers name) of all modules. In the up path, resampling ends a level's last block."""
    yield from _OUTSIDE.items()
    attends, last, number = [kind.startswith("SimpleCrossAttn") for kind in kinds], len(blocks) - 1, 1
    for level, count in enumerate(blocks):
        for block in range(count):
            yield f"input_blocks.{number}.0", f"down_blocks.{level}.resnets.{block}"
            yield f"input_blocks.{number}.1", f"down_blocks.{level}.attentions.{block}"
            number += 1
        if level < last:
            yield f"input_blocks.{number}.0", f"down_blocks.{level}.downsamplers.0"
            number += 1
    number = 0
    for level, (count, attend) in enumerate(zip(reversed(blocks), reversed(attends), strict=True)):
        for block in range(count + 1):
            yield f"output_blocks.{number}.0", f"up_blocks.{level}.resnets.{block}"
            modules = [f"up_blocks.{level}.attentions.{block}"] if attend else []
            if block == count and level < last:
                modules.append(f"up_blocks.{level}.upsamplers.0")
            for index, module in enumerate(modules, start=1):
                yield f"output_blocks.{number}.{index}", module
            number += 1


def _numbers(params: Mapping[str, Any], field: str, where: str) -> list[Any]:
    """Return a field as a list of numbers, from a number, a list, or text such as "1,2,3"."""
    value: Any = params.get(field)
    if isinstance(value, str) and re.fullmatch(r" *\d+(\.\d+)? *(, *\d+(\.\d+)? *)*", value):
        value = [float(item) if "." in item else int(item) for item in value.split(",")]
    values: list[Any] = value if isinstance(value, list) else [value]
    if not 1 <= len(values) <= 64 or not all(type(item) in (int, float) and 0 < item <= MOST for item in values):
        raise UserError(
            f"{where}: params.{field} is {params.get(field)!r}; it must be numbers above 0, as in 1,2,3, up to {MOST}"
        )
    return values


def _strides(params: Mapping[str, Any], field: str, where: str) -> list[int]:
    """Return a field as strides, relative to the image size. A text field has resolutions, a list has strides."""
    value = params.get(field)
    if not value:
        return []
    numbers = _numbers(params, field, where)
    return [params["image_size"] // each for each in numbers] if isinstance(value, str) else numbers
