"""Optimizers and learning-rate schedule."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from imagen.train.adafactor import Adafactor
from imagen.train.adam_8bit import Adam8bit, is_large
from imagen.train.config import OptimConfig
from imagen.train.layout import assign_gradients
from imagen.train.muon import Muon
from imagen.train.sharded import replicate_like

FUSED_DEVICES = ("cpu", "cuda", "mps", "xpu")


class Optimizers:
    """Several optimizers as one. The learning rate of a parameter group is `lr` times the group's own factor.

    permuted: (view that is updated, sharded parameter that has the gradient) of permuted weights; see layout.py.
    """

    def __init__(
        self,
        *optimizers: torch.optim.Optimizer,
        lr: float,
        permuted: Sequence[tuple[nn.Parameter, nn.Parameter]] = (),
    ):
        self.optimizers, self.permuted = optimizers, permuted
        for group in self.param_groups:
            group["factor"] = group["lr"] / lr

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        return [group for optimizer in self.optimizers for group in optimizer.param_groups]

    def set_learning_rate(self, lr: float) -> None:
        for group in self.param_groups:
            group["lr"] = lr * group["factor"]

    def step(self, factor: Tensor | None = None, finite: Tensor | None = None) -> None:
        """Update the parameters.

        factor: multiplies all gradients. finite: on the device; if False, parameters and state do not change.
        """
        assign_gradients(self.permuted)
        for optimizer in self.optimizers:
            if factor is None or finite is None:
                optimizer.step()
            elif isinstance(optimizer, (Adafactor, Adam8bit, Muon)):
                optimizer.step(factor=factor, finite=finite)
            else:
                _step_if_finite(optimizer, factor, finite)

    def zero_grad(self) -> None:
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)
        for _, parameter in self.permuted:
            parameter.grad = None


def build_optimizer(
    named_parameters: Iterable[tuple[str, nn.Parameter]],
    config: OptimConfig,
    replicas: dist.ProcessGroup | None = None,
    permuted: Sequence[tuple[nn.Parameter, nn.Parameter]] = (),
) -> Optimizers:
    """Build the optimizer of `config.algorithm` for all parameters that require gradients, full or sharded.

    adamw: Adam with decoupled decay (1711.05101), in one fused kernel if torch has one for the device.
    adam: Adam (1412.6980, algorithm 1 with eps added to the root of the corrected moment), likewise; equals AdamW
        with decay 0.
        With `config.state` int8, Adam8bit updates the large parameters; see adam_8bit.py.
    adafactor: see adafactor.py.
    muon: Muon for the inner matrices, AdamW for the rest. The first and last layers use AdamW: their rows or columns
        are pixels or features of the noise level, for which Muon's equal scaling of all directions is unsuitable.

    replicas: processes with the same full parameters and gradients (DDP), among which Muon divides its work.
    permuted: permuted weights of a sharded network; see `Optimizers`.
    """
    trained = [(name, parameter) for name, parameter in named_parameters if parameter.requires_grad]
    everything, decay = [parameter for _, parameter in trained], config.weight_decay
    if config.algorithm == "adafactor":
        beta1, beta2 = config.betas
        adafactor = Adafactor(everything, config.lr, beta1=beta1, beta2=beta2, weight_decay=decay)
        return Optimizers(adafactor, lr=config.lr, permuted=permuted)
    parts: list[torch.optim.Optimizer] = []  # either kind may have no parameter, as where only LoRA factors are trained
    if config.algorithm == "muon":
        if inner := [parameter for name, parameter in trained if _is_inner(name, parameter)]:
            parts.append(Muon(inner, config.muon_lr, weight_decay=decay, replicas=replicas))
        if rest := [parameter for name, parameter in trained if not _is_inner(name, parameter)]:
            parts.append(_adam(torch.optim.AdamW, rest, config))
        return Optimizers(*parts, lr=config.lr, permuted=permuted)
    if config.state == "int8":
        if large := [parameter for parameter in everything if is_large(parameter)]:
            parts.append(Adam8bit(large, config.lr, betas=config.betas, eps=config.eps, weight_decay=decay))
        if rest := [parameter for parameter in everything if not is_large(parameter)]:
            parts.append(_adam(torch.optim.AdamW, rest, config))
        return Optimizers(*parts, lr=config.lr, permuted=permuted)
    kind = torch.optim.Adam if config.algorithm == "adam" else torch.optim.AdamW
    return Optimizers(_adam(kind, everything, config), lr=config.lr, permuted=permuted)


def _adam(kind: type[torch.optim.Adam], parameters: list[nn.Parameter], config: OptimConfig) -> torch.optim.Adam:
    fused = all(parameter.device.type in FUSED_DEVICES for parameter in parameters)
    rates = {"lr": config.lr, "betas": config.betas, "eps": config.eps}
    return kind(parameters, **rates, weight_decay=config.weight_decay, fused=fused)  # type: ignore[arg-type]


def _step_if_finite(optimizer: torch.optim.Optimizer, factor: Tensor, finite: Tensor) -> None:
    """Step a fused optimizer unless `finite` is False.

    Its kernel divides gradients by `grad_scale`, and does nothing if `found_inf` is set.
    """
    like = next(p for group in optimizer.param_groups for p in group["params"] if p.grad is not None)
    optimizer.grad_scale, optimizer.found_inf = (  # type: ignore[attr-defined]
        replicate_like(like, number.float()) for number in (factor.reciprocal(), ~finite)
    )
    optimizer.step()
    del optimizer.grad_scale, optimizer.found_inf  # type: ignore[attr-defined]


def _is_inner(name: str, parameter: nn.Parameter) -> bool:
    outer = ("conv_in.", "conv_out.", "noise_embedding.layers.0.", "low_res_embedding.layers.0.")
    return parameter.ndim >= 2 and not name.startswith(outer)


def learning_rate(config: OptimConfig, step: int, steps: int) -> float:
    """Return the learning rate of step 1 to `steps`: a linear warm-up to `lr` at `warmup_steps`, then `schedule`.

    constant: lr;  cosine: half a cosine, to 0 at `steps`;  rsqrt: lr sqrt(w / step), with w = `warmup_steps`, as in T5
    (1910.10683, 3.1.2).
    """
    if step <= config.warmup_steps:
        return config.lr * step / config.warmup_steps
    if config.schedule == "constant":
        return config.lr
    if config.schedule == "rsqrt":
        return config.lr * math.sqrt(max(1, config.warmup_steps) / step)
    progress = (step - config.warmup_steps) / max(1, steps - config.warmup_steps)
    return config.lr * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
