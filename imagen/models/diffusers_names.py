"""Convert between tensor names of our U-Net and of diffusers' UNet2DConditionModel.

The mapping is one to one, and all shapes are equal except one: the position of the pooling query is [1, D] in
diffusers and [D] here.
"""

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from imagen.errors import UserError
from imagen.models.config import UNetConfig
from imagen.models.unet import UNet

_POSITION = "add_embedding.pool.positional_embedding"

# Our name as a pattern, and diffusers' name. In the down path, their levels end with resampling, ours begin with it.
_MODULES: tuple[tuple[str, str], ...] = (
    (r"^conv_in\.", "conv_in."),
    (r"^norm_out\.", "conv_norm_out."),
    (r"^conv_out\.", "conv_out."),
    (r"^noise_embedding\.layers\.0\.", "time_embedding.linear_1."),
    (r"^noise_embedding\.layers\.2\.", "time_embedding.linear_2."),
    (r"^low_res_embedding\.layers\.0\.", "class_embedding.linear_1."),
    (r"^low_res_embedding\.layers\.2\.", "class_embedding.linear_2."),
    (r"^text_projection\.", "encoder_hid_proj."),
    (r"^text_pooling\.norm_in\.", "add_embedding.norm1."),
    (r"^text_pooling\.norm_out\.", "add_embedding.norm2."),
    (r"^text_pooling\.to_out\.", "add_embedding.proj."),
    (r"^text_pooling\.to_([qkv])\.", r"add_embedding.pool.\1_proj."),
    (r"^text_pooling\.position$", _POSITION),
    (r"^middle\.0\.attention\.", "mid_block.attentions.0."),
    (r"^middle\.(\d)\.residual\.", r"mid_block.resnets.\1."),
    (r"^(down|up)\.(\d+)\.blocks\.(\d+)\.residual\.", r"\1_blocks.\2.resnets.\3."),
    (r"^(down|up)\.(\d+)\.blocks\.(\d+)\.attention\.", r"\1_blocks.\2.attentions.\3."),
    (r"^up\.(\d+)\.resample\.", r"up_blocks.\1.upsamplers.0."),
)
_PARTS: tuple[tuple[str, str], ...] = (
    (r"(resnets\.\d+|samplers\.0)\.modulation\.", r"\1.time_emb_proj."),
    (r"(resnets\.\d+|samplers\.0)\.shortcut\.", r"\1.conv_shortcut."),
    (r"(attentions\.\d+)\.norm\.", r"\1.group_norm."),
    (r"(attentions\.\d+)\.to_out\.", r"\1.to_out.0."),
    (r"(attentions\.\d+)\.context_norm\.", r"\1.norm_cross."),
    (r"(attentions\.\d+)\.context_([kv])\.", r"\1.add_\2_proj."),
)


def theirs(name: str) -> str:
    """Return the diffusers name of one of our tensors."""
    if match := re.match(r"^down\.(\d+)\.resample\.", name):
        name = f"down_blocks.{int(match[1]) - 1}.downsamplers.0.{name[match.end() :]}"
    for ours, module in _MODULES:
        name, found = re.subn(ours, module, name)
        if found:
            break
    for ours, part in _PARTS:
        name = re.sub(ours, part, name)
    return name


def to_ours(tensors: Mapping[str, Tensor], config: UNetConfig, where: str) -> dict[str, Tensor]:
    """Return diffusers' tensors under our names, not copied. They may be on the meta device.

    Raises UserError, naming `where` and the tensor, if one is missing or unknown.
    """
    with torch.device("meta"):
        expected = UNet(config).state_dict()
    found, left = {}, dict(tensors)
    for name, like in expected.items():
        key = theirs(name)
        if key not in left:
            raise UserError(f"{where}: tensor {key!r} is missing; the file does not fit its config.json")
        tensor = left.pop(key)
        wanted = (1, *like.shape) if key == _POSITION else tuple(like.shape)
        if tuple(tensor.shape) != wanted:
            raise UserError(f"{where}: tensor {key!r} has shape {tuple(tensor.shape)}, config.json needs {wanted}")
        found[name] = tensor.reshape(like.shape)
    if left:
        first = min(left)
        more = f" and {len(left) - 1} more" if len(left) > 1 else ""
        raise UserError(f"{where}: tensor {first!r}{more} is not in the U-Net of its config.json")
    return found


def to_theirs(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return our tensors under diffusers' names, not copied."""
    renamed = {theirs(name): tensor for name, tensor in tensors.items()}
    renamed[_POSITION] = renamed[_POSITION][None]
    return renamed
