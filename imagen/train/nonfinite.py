"""An update that does nothing where a gradient is not finite, decided on the device: nobody looks at a number."""

from collections.abc import Sequence

import torch
from torch import Tensor


def mask_gradients(gradients: Sequence[Tensor], factor: Tensor | None, finite: Tensor | None) -> Tensor | None:
    """Multiply gradients by `factor` in place, or make them 0 where not `finite`.

    Returns 1, or 0 if nothing is to change: by which the rates of all updates are to be multiplied; None without
    `finite`.
    """
    if factor is None or finite is None or not gradients:
        return None
    for gradient in gradients:
        gradient.nan_to_num_(0.0, 0.0, 0.0)
    torch._foreach_mul_(list(gradients), torch.where(finite, factor, 0.0))
    return finite.to(factor.dtype)


def lerp_(values: list[Tensor], others: list[Tensor], weight: float, ok: Tensor | None) -> None:
    """values <- values + weight (others - values), or as they are if `ok` is 0."""
    if ok is None:
        torch._foreach_lerp_(values, others, weight)
    else:
        torch._foreach_lerp_(values, others, [weight * ok] * len(values))


def decay_(values: list[Tensor], share: float, ok: Tensor | None) -> None:
    """values <- (1 - share) values, or as they are if `ok` is 0."""
    if share:
        torch._foreach_mul_(values, 1 - share if ok is None else 1 - share * ok)
