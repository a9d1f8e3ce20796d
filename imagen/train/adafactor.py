"""Adafactor: Adam with a matrix's second moments factored into a column and a row (arXiv 1804.04235)."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from imagen.train.nonfinite import decay_, lerp_, mask_gradients
from imagen.train.sharded import local, local_gradient, sharded_zeros, sum_over_ranks

EPS = 1e-30  # added to squares
DECAY = 0.8  # exponent of the second moments' decay: beta2 is 1 - t^-0.8 at step t, as in section 7.2
CLIP = 1.0  # the largest root mean square of a parameter's update, section 6
MIN_FACTORED = 32  # matrices with fewer rows or columns store a second moment per element


class Adafactor(torch.optim.Optimizer):
    """Adafactor optimizer. A convolution [O, I, h, w] is treated as h x w matrices [O, I]; vectors are not factored.

    R <- b R + (1 - b) mean_I(g^2 + eps);  C <- b C + (1 - b) mean_O(g^2 + eps),  b = min(beta2, 1 - t^-0.8)
    U = g / sqrt(R C / mean_I(C));  U <- U / max(1, RMS(U));  m <- beta1 m + (1 - beta1) U
    W <- (1 - lr decay) W - lr m

    Differences from the paper's algorithm 4: the step size is `lr`, neither scaled by the size of the weights nor
    decreasing by itself; `beta2` limits b; and the first moment is computed after clipping. The last two follow
    big_vision's variant (2106.04560; beta1 0.9, beta2 0.999), which does not clip. T5 uses no first moment (beta1 0
    stores none) and no limit.

    Parameters may be sharded by rows (see sharded.py). R and unfactored moments are then sharded in the same way, every
    rank holds all of C, and a step takes two small all-reduces for all parameters together. Parameters must be float32
    or float64: in low precision the moments would be wrong.

    `step` overwrites the gradients with the clipped updates.
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
    def step(  # type: ignore[override]
        self,
        closure: Callable[[], Any] | None = None,
        *,
        factor: Tensor | None = None,
        finite: Tensor | None = None,
    ) -> None:
        """Update the parameters. factor, finite: as for `Optimizers.step`."""
        for group in self.param_groups:
            trained = [parameter for parameter in group["params"] if parameter.grad is not None]
            if not trained:
                continue
            for parameter in trained:
                if not self.state[parameter]:
                    self.state[parameter].update(_new_state(parameter, group["beta1"]))
            updates = [local_gradient(parameter) for parameter in trained]
            ok = mask_gradients(updates, factor, finite)
            self._scale(trained, group["beta2"], ok)
            self._clip(trained)
            if group["beta1"]:
                momenta = [local(self.state[parameter]["momentum"]) for parameter in trained]
                lerp_(momenta, updates, 1 - group["beta1"], ok)
                updates = momenta if ok is None else list(torch._foreach_mul(momenta, ok))
            weights = [local(parameter) for parameter in trained]
            decay_(weights, group["lr"] * group["weight_decay"], ok)
            torch._foreach_add_(weights, updates, alpha=-group["lr"])

    def _scale(self, parameters: list[Tensor], beta2: float, ok: Tensor | None) -> None:
        """Update second moments with the squared gradients; divide each gradient by the root of its second moment."""
        steps = [self.state[parameter]["steps"] for parameter in parameters]
        if ok is None:
            torch._foreach_add_(steps, 1)
            new = torch.stack(steps).pow_(-DECAY).clamp_(min=1 - beta2)
        else:
            torch._foreach_add_(steps, [ok] * len(steps))
            new = torch.stack(steps).clamp_(min=1).pow_(-DECAY).clamp_(min=1 - beta2).mul_(ok)
        weights = dict(zip(parameters, new.unbind(), strict=True))
        matrices = [parameter for parameter in parameters if _is_factored(parameter)]
        vectors = [parameter for parameter in parameters if not _is_factored(parameter)]
        if matrices:
            self._scale_matrices(matrices, [weights[parameter] for parameter in matrices])
        if vectors:
            gradients = [local_gradient(parameter) for parameter in vectors]
            moments = [local(self.state[parameter]["square"]) for parameter in vectors]
            squares = torch._foreach_add(torch._foreach_mul(gradients, gradients), EPS)
            torch._foreach_lerp_(moments, squares, [weights[parameter] for parameter in vectors])
            torch._foreach_mul_(gradients, torch._foreach_rsqrt(moments))

    def _scale_matrices(self, matrices: list[Tensor], new: list[Tensor]) -> None:
        gradients = [local_gradient(parameter) for parameter in matrices]
        # Sums of squares, computed as norms: squaring the gradients would copy them.
        rows, sums = (
            torch._foreach_mul(norms, norms)
            for norms in ([torch.linalg.vector_norm(g, dim=dim) for g in gradients] for dim in (1, 0))
        )
        rows = torch._foreach_div(rows, [float(matrix.shape[1]) for matrix in matrices])
        means = torch._foreach_div(sum_over_ranks(sums, matrices), [float(len(matrix)) for matrix in matrices])
        torch._foreach_add_(rows, EPS)
        torch._foreach_add_(means, EPS)
        R = [local(self.state[matrix]["row"]) for matrix in matrices]
        C = [self.state[matrix]["column"] for matrix in matrices]
        torch._foreach_lerp_(R, rows, new)
        torch._foreach_lerp_(C, means, new)
        # The mean of C equals the paper's mean of R over all rows; every rank has C, so no all-reduce is needed.
        by_row = torch._foreach_rsqrt(torch._foreach_div(R, [column.mean(0) for column in C]))
        torch._foreach_mul_(gradients, [factor.unsqueeze(1) for factor in by_row])
        torch._foreach_mul_(gradients, torch._foreach_rsqrt(C))

    def _clip(self, parameters: list[Tensor]) -> None:
        """Scale down updates whose root mean square is above the limit, without waiting for the device."""
        gradients = [local_gradient(parameter) for parameter in parameters]
        norms = torch._foreach_norm(gradients)
        totals = sum_over_ranks(torch._foreach_mul(norms, norms), parameters)
        rms = torch._foreach_sqrt(torch._foreach_div(totals, [float(parameter.numel()) for parameter in parameters]))
        torch._foreach_div_(gradients, torch._foreach_clamp_min(torch._foreach_div(rms, CLIP), 1.0))


def _is_factored(parameter: Tensor) -> bool:
    return parameter.ndim >= 2 and min(parameter.shape[:2]) >= MIN_FACTORED


def _new_state(parameter: Tensor, beta1: float) -> dict[str, Tensor]:
    # A tensor on the device, so that no step synchronises. Not named "step": torch leaves such a tensor on the CPU when
    # it loads a state.
    state = {"steps": torch.zeros((), dtype=parameter.dtype, device=parameter.device)}
    if _is_factored(parameter):
        rows, columns, *kernel = parameter.shape
        state["row"] = sharded_zeros(parameter, (rows, *kernel))
        state["column"] = torch.zeros(columns, *kernel, dtype=parameter.dtype, device=parameter.device)
    else:
        state["square"] = torch.zeros_like(parameter)
    # The first update replaces the second moments. Steps that are skipped before it would divide 0 by 0.
    for moment in state.keys() - {"steps"}:
        local(state[moment]).fill_(EPS)
    if beta1:
        state["momentum"] = torch.zeros_like(parameter)
    return state
