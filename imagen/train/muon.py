"""Muon: momentum with an orthogonalised update of each matrix (K. Jordan 2024; scaled as in 2502.16982)."""

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from imagen.precision import arithmetic
from imagen.train.nonfinite import decay_, lerp_, mask_gradients
from imagen.train.sharded import distribute_matrices, local, local_gradient, map_full_matrices

# Coefficients (a, b, c) of each iteration, x <- a x + b x^3 + c x^5. Each quintic minimizes the maximum error |1 - x|
# on the interval that results from the previous iterations, starting from singular values in [0.0025, 1]. After four
# iterations, values are between 0.75 and 1.25, as after five of Jordan's. This greedy choice is optimal (2505.16932).
QUINTICS = (
    (8.4052, -24.8508, 18.4246),
    (4.0772, -3.0350, 0.5722),
    (3.6058, -2.6996, 0.5340),
    (2.6177, -1.9413, 0.4486),
)
MARGIN = 1.01  # widens each iteration's interval: above it a quintic grows fast, and rounding can exceed it
_QUINTICS = tuple((a / MARGIN, b / MARGIN**3, c / MARGIN**5) for a, b, c in QUINTICS)
WIDE = 3  # minimum ratio of the sides at which float32 iterates on the smaller Gram matrix


def orthogonalise(matrices_NOI: Tensor) -> Tensor:
    """Return the nearest matrices [N, O, I] with singular values of 1, accurate to within a quarter.

    A Newton-Schulz iteration, X <- a X + b X X^T X + c (X X^T)^2 X, applies the same polynomial to every singular value
    and consists of matrix products only. It runs in the dtype with the device's fastest matrix product
    (`imagen.precision`), which is the dtype of the result.
    """
    tall = matrices_NOI.shape[-2] > matrices_NOI.shape[-1]
    X = matrices_NOI.mT if tall else matrices_NOI  # X X^T is then the smaller product
    # Squares of the smallest gradients, such as those of LoRA factors in the first steps, would round to 0.
    largest = X.abs().amax(dim=(-2, -1), keepdim=True).clamp_min(torch.finfo(X.dtype).tiny)
    norm = largest * (X / largest).norm(dim=(-2, -1), keepdim=True)
    X = (X / (norm + 1e-30)).to(arithmetic(X.device).matrices)
    # Not in bfloat16: the Gram matrix contains squared singular values, and the small ones would be lost.
    wide = X.shape[-1] >= WIDE * X.shape[-2] and X.dtype == torch.float32
    X = _by_gram(X) if wide else _by_matrix(X)
    return X.mT if tall else X


def _by_matrix(X: Tensor) -> Tensor:
    for a, b, c in _QUINTICS:
        gram = X @ X.mT
        X = torch.baddbmm(X, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), X, beta=a)
    return X


def _by_gram(X: Tensor) -> Tensor:
    """Iterate on G = X X^T instead: with P = a I + b G + c G^2, X <- P X and G <- P G P. P and G commute."""
    gram = X @ X.mT
    product: Tensor | None = None
    for index, (a, b, c) in enumerate(_QUINTICS, 1):
        P = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        P.diagonal(dim1=-2, dim2=-1).add_(a)
        product = P if product is None else P @ product
        if index < len(_QUINTICS):
            gram = P @ gram @ P
    assert product is not None
    return product @ X


class Muon(torch.optim.Optimizer):
    """Muon optimizer for weights with at least two dimensions; a convolution [O, I, h, w] is the matrix [O, I h w].

    m <- mu m + (1 - mu) g;  W <- (1 - lr decay) W - lr 0.2 sqrt(max(O, I)) orthogonalise((1 - mu) g + mu m).

    With the factor 0.2 sqrt(max(O, I)), an update has about the same root mean square as one of Adam's, so learning
    rates are comparable.

    Parameters may be sharded by rows (see sharded.py), all of one optimizer in the same way. Each rank of a replica
    then orthogonalises a share of the matrices of each shape; sharded replicas repeat the same work.
    replicas: processes with the same full parameters and gradients (DDP), which divide the matrices among them.
    """

    def __init__(
        self,
        parameters: Iterable[Tensor],
        lr: float,
        *,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
        replicas: dist.ProcessGroup | None = None,
    ) -> None:
        super().__init__(parameters, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        if any(parameter.ndim < 2 for group in self.param_groups for parameter in group["params"]):
            raise ValueError("Muon only updates matrices: use another optimizer for vectors and scalars")
        self.replicas = replicas

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
                    self.state[parameter]["momentum"] = torch.zeros_like(parameter)
            gradients = [local_gradient(parameter) for parameter in trained]
            momenta = [local(self.state[parameter]["momentum"]) for parameter in trained]
            ok = mask_gradients(gradients, factor, finite)
            lerp_(momenta, gradients, 1 - group["momentum"], ok)
            # Nesterov momentum.
            updates = torch._foreach_lerp(gradients, momenta, group["momentum"])
            self._add(trained, [update.flatten(1) for update in updates], group, ok)

    def _add(
        self, parameters: list[Tensor], updates_oI: list[Tensor], group: dict[str, Any], ok: Tensor | None
    ) -> None:
        """Orthogonalise the updates, all of one shape together, and apply them."""
        same_shape: dict[object, list[int]] = defaultdict(list)
        for index, (parameter, update_oI) in enumerate(zip(parameters, updates_oI, strict=True)):
            same_shape[len(parameter), update_oI.shape].append(index)
        together = list(same_shape.values())
        stacks_NoI = [torch.stack([updates_oI[index] for index in indices]) for indices in together]
        if self.replicas is not None:
            stacks_NoI = distribute_matrices(orthogonalise, stacks_NoI, self.replicas)
        else:
            like = [parameters[indices[0]] for indices in together]
            stacks_NoI = [map_full_matrices(orthogonalise, *each) for each in zip(stacks_NoI, like, strict=True)]
        for indices, stack_NoI in zip(together, stacks_NoI, strict=True):
            weights = [local(parameters[index]) for index in indices]
            rate = group["lr"] * 0.2 * max(len(parameters[indices[0]]), stack_NoI.shape[2]) ** 0.5
            steps_NoI = stack_NoI.to(weights[0].dtype).mul(-rate if ok is None else -rate * ok)
            decay_(weights, group["lr"] * group["weight_decay"], ok)
            steps = [step_oI.reshape(rows.shape) for step_oI, rows in zip(steps_NoI, weights, strict=True)]
            torch._foreach_add_(weights, steps)
