"""Skip an update with non-finite gradients on the device, without synchronisation."""

from collections.abc import Sequence

import torch
from torch import Tensor


def mask_gradients(gradients: Sequence[Tensor], factor: Tensor | None, finite: Tensor | None) -> Tensor | None:
    """Multiply gradients by `factor` in place, or set them to 0 if not `finite`.

    Returns the factor for all updates: 1, or 0 if the step is skipped; None if `finite` is None.
    """
    if factor is None or finite is None or not gradients:
        return None
    for gradient in gradients:
        gradient.nan_to_num_(0.0, 0.0, 0.0)
    torch._foreach_mul_(list(gradients), torch.where(finite, factor, 0.0))
    return finite.to(factor.dtype)


def lerp_(values: list[Tensor], others: list[Tensor], weight: float, ok: Tensor | None) -> None:
    """Compute values <- values + weight (others - values) in place; leave them unchanged if `ok` is 0."""
    if ok is None:
        torch._foreach_lerp_(values, others, weight)
    else:
        torch._foreach_lerp_(values, others, [weight * ok] * len(values))


def decay_(values: list[Tensor], share: float, ok: Tensor | None) -> None:
    """Compute values <- (1 - share) values in place; leave them unchanged if `ok` is 0."""
    if share:
        torch._foreach_mul_(values, 1 - share if ok is None else 1 - share * ok)
