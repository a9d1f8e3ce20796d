"""Write adapters as safetensors with the keys of peft and diffusers."""

import json
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from imagen.files import replacing
from imagen.lora.config import LoraConfig
from imagen.lora.files import Factors
from imagen.lora.modules import factors as factors_of
from imagen.models.diffusers_names import theirs
from imagen.tensors import save_tensors


def write_adapter(path: Path, state: Mapping[str, Tensor], config: LoraConfig, *, diffusers: bool) -> None:
    """Write the factors in `state` to `path`, as `unet.MODULE.lora_A.weight`, with rank and alpha as metadata.

    diffusers: name modules as diffusers' U-Net does, for structures that it has; else by our names. `read_adapter`
    takes both. Raises UserError on a full disk.
    """
    tensors, modules = {}, []
    for ours, A, B in factors_of(state):
        module = theirs(f"{ours}.weight").removesuffix(".weight") if diffusers else ours
        modules.append(module)
        tensors[f"unet.{module}.lora_A.weight"] = A.float().contiguous()
        tensors[f"unet.{module}.lora_B.weight"] = B.float().contiguous()
    settings = {
        "r": config.rank,
        "lora_alpha": config.rank if config.alpha is None else config.alpha,
        "target_modules": modules,
    }
    metadata = {"lora_adapter_metadata": json.dumps({f"unet.{name}": value for name, value in settings.items()})}
    with replacing(path) as temporary:
        save_tensors(tensors, temporary, {"format": "pt", **metadata})


def adapter_tensors(modules: Mapping[str, Factors]) -> dict[str, Tensor]:
    """Return the tensors of an adapter file that needs no settings: with the scale in B, so alpha / rank is 1."""
    tensors = {}
    for name, factors in modules.items():
        tensors[f"{name}.lora_A.weight"] = factors.A.contiguous()
        tensors[f"{name}.lora_B.weight"] = (factors.scale * factors.B).contiguous()
    return tensors
