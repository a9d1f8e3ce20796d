"""Write adapters as safetensors with the keys of peft and diffusers."""

import json
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from imagen.files import replacing
from imagen.lora.config import LoraConfig
from imagen.lora.modules import factors
from imagen.models.diffusers_names import theirs
from imagen.tensors import save_tensors


def write_adapter(path: Path, state: Mapping[str, Tensor], config: LoraConfig, *, diffusers: bool) -> None:
    """Write the factors in `state` to `path`, as `unet.MODULE.lora_A.weight`, with rank and alpha as metadata.

    diffusers: name modules as diffusers' U-Net does, for structures that it has; else by our names. `read_adapter`
    takes both. Raises UserError on a full disk.
    """
    tensors, modules = {}, []
    for ours, A, B in factors(state):
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
