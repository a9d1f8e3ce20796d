"""Optimizers and learning-rate schedule."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from imagen.errors import check_number
from imagen.train.muon import Muon

FUSED_DEVICES = ("cpu", "cuda", "mps", "xpu")


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    # muon: Muon for the matrices inside the network, AdamW for the rest
    algorithm: Literal["adamw", "muon"] = "adamw"
    lr: float = 1e-4
    muon_lr: float = 2e-3  # of Muon's part; it follows the same warm-up and schedule
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0
    warmup_steps: int = 10_000
    schedule: Literal["cosine", "constant"] = "cosine"  # cosine falls to 0 at the last step
    clip_norm: float = 1.0

    def check(self) -> None:
        """UserError, naming the field, unless every value is in its range."""
        check_number("optim.lr", self.lr, above=0)
        check_number("optim.muon_lr", self.muon_lr, above=0)
        for index, beta in enumerate(self.betas):
            check_number(f"optim.betas[{index}]", beta, least=0, below=1)
        check_number("optim.eps", self.eps, above=0)
        check_number("optim.weight_decay", self.weight_decay, least=0)
        check_number("optim.warmup_steps", self.warmup_steps, least=0)
        check_number("optim.clip_norm", self.clip_norm, above=0)


class Optimizers:
    """Several optimizers as one. Every parameter group's rate is `lr` times the group's own factor."""

    def __init__(self, *optimizers: torch.optim.Optimizer, lr: float):
        self.optimizers = optimizers
        for group in self.param_groups:
            group["factor"] = group["lr"] / lr

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        return [group for optimizer in self.optimizers for group in optimizer.param_groups]

    def set_learning_rate(self, lr: float) -> None:
        for group in self.param_groups:
            group["lr"] = lr * group["factor"]

    def step(self) -> None:
        for optimizer in self.optimizers:
            optimizer.step()

    def zero_grad(self) -> None:
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)

    def state_dict(self) -> list[dict[str, Any]]:
        return [optimizer.state_dict() for optimizer in self.optimizers]

    def load_state_dict(self, states: list[dict[str, Any]]) -> None:
        for optimizer, state in zip(self.optimizers, states, strict=True):
            optimizer.load_state_dict(state)


def build_optimizer(named_parameters: Iterable[tuple[str, nn.Parameter]], config: OptimConfig) -> Optimizers:
    """AdamW (1711.05101), in one fused kernel where torch has it; with `muon`, Muon for the inner matrices.

    A network's first and last layers stay with AdamW: their rows and columns are pixels, or the features of a
    number, which are not directions to be treated alike.
    """
    trained = [(name, parameter) for name, parameter in named_parameters if parameter.requires_grad]
    muon = config.algorithm == "muon"
    inner = [parameter for name, parameter in trained if muon and _is_inner(name, parameter)]
    chosen = set(map(id, inner))
    rest = [parameter for _, parameter in trained if id(parameter) not in chosen]
    adamw = torch.optim.AdamW(
        rest,
        lr=config.lr,
        betas=config.betas,
        eps=config.eps,
        weight_decay=config.weight_decay,
        fused=all(parameter.device.type in FUSED_DEVICES for parameter in rest),
    )
    if not inner:
        return Optimizers(adamw, lr=config.lr)
    return Optimizers(Muon(inner, config.muon_lr, weight_decay=config.weight_decay), adamw, lr=config.lr)


def _is_inner(name: str, parameter: nn.Parameter) -> bool:
    outer = ("conv_in.", "conv_out.", "noise_embedding.layers.0.", "low_res_embedding.layers.0.")
    return parameter.ndim >= 2 and not name.startswith(outer)


def learning_rate(config: OptimConfig, step: int, steps: int) -> float:
    """Rate of step 1, 2, ... `steps`: a linear warm-up to `lr`, then constant, or half a cosine to 0 at `steps`."""
    if step <= config.warmup_steps:
        return config.lr * step / config.warmup_steps
    if config.schedule == "constant":
        return config.lr
    progress = (step - config.warmup_steps) / max(1, steps - config.warmup_steps)
    return config.lr * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
