"""Adafactor: Adam with second moments of a matrix as the product of a column and a row (arXiv 1804.04235)."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from imagen.train.sharded import local, local_gradient, summed_over_rows, zero_rows

EPS = 1e-30  # added to squares
DECAY = 0.8  # of the second moments: beta2 is 1 - t^-0.8 at step t, as in section 7.2
CLIP = 1.0  # the largest root mean square of a parameter's update, section 6
LEAST = 32  # matrices with fewer rows or columns keep a second moment of each number


class Adafactor(torch.optim.Optimizer):
    """A convolution [O, I, h, w] is a matrix [O, I] at each of its h x w places; vectors are not factored.

    R <- b R + (1 - b) mean_I(g^2 + eps);  C <- b C + (1 - b) mean_O(g^2 + eps),  b = min(beta2, 1 - t^-0.8)
    U = g / sqrt(R C / mean_I(C));  U <- U / max(1, RMS(U));  m <- beta1 m + (1 - beta1) U
    W <- (1 - lr decay) W - lr m

    Of the paper's algorithm 4, the step is `lr`, neither relative to the size of the weights nor falling by itself;
    `beta2` limits b, and the first moment follows the clipping: as in big_vision's variant (2106.04560; beta1 0.9,
    beta2 0.999), which does not clip. T5 has no first moment (beta1 0 keeps none) and no limit.

    Parameters may be sharded by rows (see sharded.py). Then R and the moments of single numbers are sharded with them,
    C is whole on every rank, and a step takes two small all-reduces, however many parameters there are. They are
    float32 or float64; in half precision the moments would be wrong.

    `step` uses the gradients up: they hold the clipped updates after it.
    """

    def __init__(
        self,
        parameters: Iterable[Tensor],
        lr: float,
        *,
        beta1: float = 0.0,
        beta2: float = 0.999,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(parameters, {"lr": lr, "beta1": beta1, "beta2": beta2, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            trained = [parameter for parameter in group["params"] if parameter.grad is not None]
            for parameter in trained:
                if not self.state[parameter]:
                    self.state[parameter].update(_new_state(parameter, group["beta1"]))
            self._scale(trained, group["beta2"])
            self._clip(trained)
            for parameter in trained:
                update, weights = local_gradient(parameter), local(parameter)
                if group["beta1"]:
                    momentum = local(self.state[parameter]["momentum"])
                    update = momentum.lerp_(update, 1 - group["beta1"])
                weights.mul_(1 - group["lr"] * group["weight_decay"]).add_(update, alpha=-group["lr"])

    def _scale(self, parameters: list[Tensor], beta2: float) -> None:
        """Take in the gradients' squares; divide each gradient by the root of its second moment."""
        matrices = [parameter for parameter in parameters if _is_factored(parameter)]
        rows, sums = [], []
        for parameter in matrices:
            squares = local_gradient(parameter).square().add_(EPS)
            rows.append(squares.mean(1))
            sums.append(squares.sum(0))
        means = dict(zip(matrices, zip(rows, summed_over_rows(sums, matrices), strict=True), strict=True))
        for parameter in parameters:
            state, g = self.state[parameter], local_gradient(parameter)
            new = state["steps"].add_(1).pow(-DECAY).clamp_(min=1 - beta2)
            if parameter in means:
                row, column_sum = means[parameter]
                R, C = local(state["row"]).lerp_(row, new), state["column"].lerp_(column_sum / len(parameter), new)
                # mean_I(C) is the paper's mean of R over all rows, but every rank knows it already.
                g.mul_((R / C.mean(0)).rsqrt().unsqueeze(1)).mul_(C.rsqrt())
            else:
                g.mul_(local(state["square"]).lerp_(g.square().add_(EPS), new).rsqrt())

    def _clip(self, parameters: list[Tensor]) -> None:
        """Shorten updates whose root mean square is above the limit; nothing waits for the device."""
        squares = [local_gradient(parameter).square().sum() for parameter in parameters]
        for parameter, total in zip(parameters, summed_over_rows(squares, parameters), strict=True):
            rms = (total / parameter.numel()).sqrt()
            local_gradient(parameter).div_((rms / CLIP).clamp(min=1.0))


def _is_factored(parameter: Tensor) -> bool:
    return parameter.ndim >= 2 and min(parameter.shape[:2]) >= LEAST


def _new_state(parameter: Tensor, beta1: float) -> dict[str, Tensor]:
    # On the device, and not named "step", which torch would leave on the CPU when it loads a state: no step waits.
    state = {"steps": torch.zeros((), dtype=parameter.dtype, device=parameter.device)}
    if _is_factored(parameter):
        rows, columns, *places = parameter.shape
        state["row"] = zero_rows(parameter, (rows, *places))
        state["column"] = torch.zeros(columns, *places, dtype=parameter.dtype, device=parameter.device)
    else:
        state["square"] = torch.zeros_like(parameter)
    if beta1:
        state["momentum"] = torch.zeros_like(parameter)
    return state
