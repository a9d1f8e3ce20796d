"""Write LoRA files with random factors for the small cascades."""

from pathlib import Path

import torch
from safetensors.torch import save_file

from imagen.cascade import Cascade


def lora_file(path: Path, model: Cascade, number: int = 0, seed: int = 0) -> Path:
    """Write a LoRA of rank 2 for every convolution and linear layer of a stage, with our layer names."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, weight in model.stages[number].unet.state_dict().items():
        module, _, kind = name.rpartition(".")
        if kind == "weight" and weight.ndim in (2, 4):
            ones = [1] * (weight.ndim - 2)
            tensors[f"{module}.lora_A.weight"] = torch.randn(2, *weight.shape[1:], generator=generator)
            tensors[f"{module}.lora_B.weight"] = torch.randn(len(weight), 2, *ones, generator=generator) / 200
    save_file(tensors, path)
    return path
