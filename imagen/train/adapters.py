"""What a run of adapters exports: the LoRA file, and its weights merged into the stage."""

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from imagen.convert.structure import write_unet_config
from imagen.errors import UserError
from imagen.lora.config import LoraConfig
from imagen.lora.write import write_adapter
from imagen.stage.config import StageConfig

LORA_FILE = "lora.safetensors"


def write_lora(path: Path, weights: Mapping[str, Tensor], stage: StageConfig, lora: LoraConfig) -> None:
    """Write the factors in `weights` as a LoRA file, with diffusers' names if its U-Net has the stage's structure."""
    try:
        write_unet_config(stage.unet, stage.resolution, "")
        diffusers = True
    except UserError:
        diffusers = False
    write_adapter(path, weights, lora, diffusers=diffusers)
