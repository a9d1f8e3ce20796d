"""Optimizer and learning-rate schedule."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from imagen.errors import check_number

FUSED_DEVICES = ("cpu", "cuda", "mps", "xpu")


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    lr: float = 1e-4
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0
    warmup_steps: int = 10_000
    schedule: Literal["cosine", "constant"] = "cosine"  # cosine falls to 0 at the last step
    clip_norm: float = 1.0

    def check(self) -> None:
        """UserError, naming the field, unless every value is in its range."""
        check_number("optim.lr", self.lr, above=0)
        for index, beta in enumerate(self.betas):
            check_number(f"optim.betas[{index}]", beta, least=0, below=1)
        check_number("optim.eps", self.eps, above=0)
        check_number("optim.weight_decay", self.weight_decay, least=0)
        check_number("optim.warmup_steps", self.warmup_steps, least=0)
        check_number("optim.clip_norm", self.clip_norm, above=0)


def build_optimizer(parameters: Iterable[nn.Parameter], config: OptimConfig) -> torch.optim.Optimizer:
    """AdamW (1711.05101), in one fused kernel where torch has it for the parameters' device."""
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    return torch.optim.AdamW(
        trained,
        lr=config.lr,
        betas=config.betas,
        eps=config.eps,
        weight_decay=config.weight_decay,
        fused=all(parameter.device.type in FUSED_DEVICES for parameter in trained),
    )


def learning_rate(config: OptimConfig, step: int, steps: int) -> float:
    """Rate of step 1, 2, ... `steps`: a linear warm-up to `lr`, then constant, or half a cosine to 0 at `steps`."""
    if step <= config.warmup_steps:
        return config.lr * step / config.warmup_steps
    if config.schedule == "constant":
        return config.lr
    progress = (step - config.warmup_steps) / max(1, steps - config.warmup_steps)
    return config.lr * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
