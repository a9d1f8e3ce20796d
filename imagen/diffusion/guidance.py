"""From a network to a denoiser: x0 estimates, classifier-free guidance, thresholding.

Behaviour is added by wrapping:

    model = predict_x0(unet, "v")                                       # (x, lambda, **cond) -> Estimate
    denoise = ClassifierFree(model, cond, uncond, weight=5.0)           # (x, lambda) -> Estimate
    denoise = DynamicThreshold(denoise, percentile=0.995)
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from imagen.diffusion.objective import Prediction, split_variance, to_x0
from imagen.diffusion.schedule import NoiseLabel, noise_label
from imagen.errors import UserError


class Estimate(NamedTuple):
    """What a denoiser returns for a noised image."""

    x0: Tensor  # [B, C, H, W]
    # The log variance of a reverse step, from its lower bound (0) to its upper bound (1), shaped like x0;
    # None where the U-Net does not predict it.
    variance: Tensor | None = None


Denoiser = Callable[[Tensor, Tensor], Estimate]  # (x_BCHW, logsnr_B) -> Estimate


def at_level(x_BCHW: Tensor, logsnr: float) -> Tensor:
    """Return logsnr_B for a denoiser, all of one level, which `known_level` returns without waiting for the device."""
    logsnr_B = x_BCHW.new_full(x_BCHW.shape[:1], logsnr)
    logsnr_B.level = logsnr  # type: ignore[attr-defined]
    return logsnr_B


def known_level(logsnr_B: Tensor) -> float | None:
    """Return the level of all images, if `at_level` made them, else None."""
    return getattr(logsnr_B, "level", None)


class ConditionalModel(Protocol):
    """A denoiser that also takes conditions."""

    def __call__(self, x_BCHW: Tensor, logsnr_B: Tensor, /, **cond: Tensor) -> Estimate: ...


def predict_x0(
    network: Callable[..., Tensor], prediction: Prediction, label: NoiseLabel = noise_label
) -> ConditionalModel:
    """Return a model that converts the output of `network(x, label(lambda), **cond)` to an Estimate.

    The output may be in low precision: the conversion runs in the precision of x, at least float32. Twice the channels
    of x mean a learned variance, v in [-1, 1].
    """

    def model(x_BCHW: Tensor, logsnr_B: Tensor, /, **cond: Tensor) -> Estimate:
        dtype = torch.promote_types(x_BCHW.dtype, torch.float32)
        output = network(x_BCHW, label(logsnr_B), **cond).to(dtype)
        mean, v = split_variance(output, x_BCHW.shape[1])
        x0 = to_x0(prediction, mean, x_BCHW.to(dtype), logsnr_B.to(dtype))
        return Estimate(x0, None if v is None else (v + 1) / 2)

    return model


class ClassifierFree:
    """x0 = uncond + weight (cond - uncond) (2207.12598; linear, hence the same as guiding eps).

    Both halves run in one forward of twice the batch. The learned variance is that of the conditional half.

    cond: the conditioning of the model, batch-first tensors; absent rather than None. uncond: only those of them that
    differ without the text, in the same shapes (pad texts to a common length first; the mask hides the padding).
    weight: 1 is no guidance, and runs no unconditional half.
    interval: log-SNR range, both ends included, outside of which weight is 1 (2404.07724): guidance is harmful
    at high noise and useless at low noise.
    rescale: phi of 2305.08891, eq. 14-16, on x0: guidance increases contrast, so the standard deviation of
    each image is moved, by this share, to that of the conditional estimate.
    """

    def __init__(
        self,
        model: ConditionalModel,
        cond: Mapping[str, Tensor],
        uncond: Mapping[str, Tensor],
        weight: float,
        interval: tuple[float, float] | None = None,
        rescale: float = 0.0,
    ):
        for key, value in uncond.items():
            if key not in cond or cond[key].shape != value.shape:
                shape = tuple(cond[key].shape) if key in cond else "absent"
                raise ValueError(f"{key}: conditional is {shape}, unconditional {tuple(value.shape)}; they must agree")
        self.model = model
        self.cond = dict(cond)
        self.both = {key: torch.cat([value, uncond.get(key, value)]) for key, value in cond.items()}
        self.weight = weight
        self.interval = interval
        self.rescale = rescale

    def __call__(self, x_BCHW: Tensor, logsnr_B: Tensor, /) -> Estimate:
        inside: bool | Tensor = True
        if self.interval is not None:
            if (level := known_level(logsnr_B)) is not None:
                inside = self.interval[0] <= level <= self.interval[1]
            else:
                inside = (logsnr_B >= self.interval[0]) & (logsnr_B <= self.interval[1])
        if self.weight == 1 or not (inside if isinstance(inside, bool) else bool(inside.any())):
            return self.model(x_BCHW, logsnr_B, **self.cond)
        both = self.model(torch.cat([x_BCHW, x_BCHW]), torch.cat([logsnr_B, logsnr_B]), **self.both)
        cond, uncond = both.x0.chunk(2)
        weight: float | Tensor = self.weight
        if isinstance(inside, Tensor):
            weight_B = torch.full_like(logsnr_B, self.weight).where(inside, 1.0)
            weight = weight_B.to(cond.dtype).reshape(-1, *[1] * (cond.ndim - 1))
        x0 = uncond + weight * (cond - uncond)
        if self.rescale:
            every = tuple(range(1, x0.ndim))
            ratio = cond.std(every, keepdim=True) / x0.std(every, keepdim=True).clamp(min=1e-6)
            x0 = x0 * torch.lerp(torch.ones_like(ratio), ratio, self.rescale)
        return Estimate(x0, None if both.variance is None else both.variance.chunk(2)[0])


@dataclass(frozen=True)
class StaticThreshold:
    """Clips x0 to [-1, 1], the range of images."""

    denoise: Denoiser

    def __call__(self, x_BCHW: Tensor, logsnr_B: Tensor, /) -> Estimate:
        estimate = self.denoise(x_BCHW, logsnr_B)
        return estimate._replace(x0=estimate.x0.clamp(-1, 1))


@dataclass(frozen=True)
class DynamicThreshold:
    """Imagen (2205.11487), sec. 2.3: x0 = clip(x0, -s, s) / s, where s is a high quantile of |x0|, at least 1.

    It pulls saturated pixels inwards, where clipping would leave them saturated. Each image has its own s.

    percentile: of |x0|, in [0, 1]. max_scale: s is at most this (1.5 in DeepFloyd IF; 1 is static thresholding).
    """

    denoise: Denoiser
    percentile: float = 0.995
    max_scale: float | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.percentile <= 1:
            raise UserError(f"dynamic thresholding: the percentile is a fraction in [0, 1], not {self.percentile}")

    def __call__(self, x_BCHW: Tensor, logsnr_B: Tensor, /) -> Estimate:
        estimate = self.denoise(x_BCHW, logsnr_B)
        x0 = estimate.x0
        s = _high_quantile(x0.abs().flatten(1), self.percentile).clamp(1, self.max_scale)
        s = s.reshape(-1, *[1] * (x0.ndim - 1))
        return estimate._replace(x0=x0.clamp(-s, s) / s)


@dataclass(frozen=True)
class AffineDenoiser:
    """Estimates scale x0 + offset: where x0 is an image in other units, such as the detail around another one."""

    denoise: Denoiser
    scale: float
    offset: Tensor

    def __call__(self, x_BCHW: Tensor, logsnr_B: Tensor, /) -> Estimate:
        estimate = self.denoise(x_BCHW, logsnr_B)
        return estimate._replace(x0=self.scale * estimate.x0 + self.offset)


def _high_quantile(x_BN: Tensor, q: float) -> Tensor:
    """torch.quantile(x, q, dim=1) without sorting the part below: ten times faster at 0.995, and no limit on N."""
    rank = q * (x_BN.shape[1] - 1)
    below = math.floor(rank)
    top = x_BN.topk(x_BN.shape[1] - below, dim=1).values  # from the largest down to number `below` from the bottom
    return torch.lerp(top[:, -1], top[:, -2:][:, 0], rank - below)
