"""Evaluate a stage's denoiser on clean images at given noise levels, and the errors of trivial predictors.

Errors are mean squared errors of the x0 estimate per image, in [-1, 1] units squared (for a stage that generates
detail: in units of detail_std squared). Shapes: see `imagen.stage.inputs`.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from imagen.data.loading.batches import Batch
from imagen.diffusion.objective import split_variance, to_x0
from imagen.diffusion.schedule import alpha_sigma, build_label, diffuse
from imagen.doctor.finding import Skip
from imagen.doctor.subject import Subject
from imagen.stage.config import StageConfig
from imagen.stage.denoiser import Predict
from imagen.stage.detail import DetailTransform
from imagen.stage.inputs import augmentation_noise, from_uint8, low_res_inputs, text_inputs, upsample_low_res
from imagen.text.embeddings import pad_embeddings

PIXELS = 16 * 128**2  # per network evaluation


def clean_images(config: StageConfig, batch: Batch) -> tuple[Tensor, Tensor | None]:
    """Return x0 [B, C, H, W] (the detail, for a stage that generates it), and the upsampled low-resolution image."""
    x0_BCHW = from_uint8(batch.image)
    if batch.low_res is None:
        return x0_BCHW, None
    height, width = batch.image.shape[-2:]
    upsampled_BCHW = upsample_low_res(batch.low_res, (height, width), config)
    if detail := DetailTransform.of(config, upsampled_BCHW):
        x0_BCHW = detail.encode(x0_BCHW)
    return x0_BCHW, upsampled_BCHW


def x0_errors(
    config: StageConfig, predict: Predict, batch: Batch, logsnr: float, device: torch.device, *, seed: int = 0
) -> Tensor:
    """Return the squared error of the x0 estimate of each image at one noise level, float32 [B] on the CPU.

    predict: the stage's network, as `Stage.loaded_unet` yields it. The same seed adds the same noise.
    """
    x0_BCHW, upsampled_BCHW = clean_images(config, batch)
    eps_BCHW = torch.randn(x0_BCHW.shape, generator=torch.Generator().manual_seed(seed))
    size, errors = max(1, PIXELS // (x0_BCHW.shape[-1] * x0_BCHW.shape[-2])), []
    for begin in range(0, len(x0_BCHW), size):
        part = slice(begin, begin + size)
        x0, eps = x0_BCHW[part].to(device), eps_BCHW[part].to(device)
        logsnr_B = x0.new_full((len(x0),), logsnr)
        conditions: dict[str, Tensor] = {}
        if config.unet.text_width is not None:
            assert batch.text is not None and batch.text_mask is not None
            conditions |= text_inputs(batch.text[part].to(device), batch.text_mask[part].to(device))
        if upsampled_BCHW is not None:
            conditions |= _augmented(config, upsampled_BCHW[part].to(device), seed)
        x_BCHW = diffuse(x0, eps, logsnr_B)
        with torch.no_grad():
            output = predict(x_BCHW, build_label(config.schedule)(logsnr_B), **conditions).float()
        mean_BCHW, _ = split_variance(output, x0.shape[1])
        estimate = to_x0(config.objective.prediction, mean_BCHW, x_BCHW, logsnr_B)
        errors.append((estimate - x0).square().flatten(1).mean(1).cpu())
    return torch.cat(errors)


def _augmented(config: StageConfig, upsampled_BCHW: Tensor, seed: int) -> dict[str, Tensor]:
    """Return the conditioning on low-resolution images with the augmentation that sampling uses."""
    eps_BCHW = torch.randn(upsampled_BCHW.shape, generator=torch.Generator().manual_seed(seed + 1))
    level_B = torch.full((len(upsampled_BCHW),), config.sampling.low_res_noise, dtype=torch.float64)
    logsnr_B, label_B = augmentation_noise(config, level_B)
    device = upsampled_BCHW.device
    return low_res_inputs(upsampled_BCHW, eps_BCHW.to(device), logsnr_B.to(device), label_B.to(device))


def noised_inputs(subject: Subject, index: int, logsnr: float) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Return inputs of a network that need no images: noise as x_t, prompts, and a grey low-resolution image."""
    config, device = subject.stages[index], subject.device
    stride = config.unet.total_stride
    side = min(config.resolution, max(stride, 64 // stride * stride))
    if config.unet.coordinates:
        side = config.resolution
    generator = torch.Generator().manual_seed(0)
    x_BCHW = torch.randn(2, config.unet.image_channels, side, side, generator=generator).to(device)
    logsnr_B = x_BCHW.new_full((2,), logsnr)
    conditions: dict[str, Tensor] = {}
    if config.unet.text_width is not None:
        try:
            texts = subject.prompts(index, 2)[1]
        except Skip:  # neither data nor an encoder
            texts = [torch.randn(8, config.unet.text_width, generator=generator)]
        text_BLD, mask_BL = pad_embeddings([texts[0], texts[-1]])
        conditions |= text_inputs(text_BLD.to(device), mask_BL.to(device))
    if config.low_resolution is not None:
        conditions |= _augmented(config, torch.zeros_like(x_BCHW), 0)
    return x_BCHW, build_label(config.schedule)(logsnr_B), conditions


@dataclass(frozen=True)
class Trivial:
    """Hold the statistics of clean images from which errors of trivial predictors follow in closed form."""

    square: float  # E x0^2
    variance: float  # about the mean of each channel
    upsampled: float | None = None  # E (x0 - upsampled low-resolution image)^2

    def errors(self, config: StageConfig, logsnr: float) -> dict[str, float]:
        """Return the squared x0 errors of predictors that use nothing but these statistics.

        zero: the network outputs 0, which means x0 = 0, x_t / alpha (eps) or alpha x_t (v).
        mean: x0 is the mean colour. identity: x0 is x_t. upsampled: x0 is the upsampled low-resolution image.
        """
        alpha, sigma = (float(value) for value in alpha_sigma(torch.tensor(logsnr, dtype=torch.float64)))
        scale = {"x0": 0.0, "eps": 1 / alpha, "v": alpha}[config.objective.prediction]  # zero output: x0 = scale x_t
        found = {"zero": self._scaled(scale, alpha, sigma), "mean": self.variance}
        found["identity"] = self._scaled(1.0, alpha, sigma)
        if self.upsampled is not None:
            found["upsampled"] = self.upsampled
        return found

    def _scaled(self, scale: float, alpha: float, sigma: float) -> float:
        """Return E (scale x_t - x0)^2 with x_t = alpha x0 + sigma eps."""
        return (scale * alpha - 1) ** 2 * self.square + (scale * sigma) ** 2


def trivial(config: StageConfig, batches: Sequence[Batch]) -> Trivial:
    """Measure the statistics of batches, which may have different shapes: means over images of means over pixels."""
    pairs = [clean_images(config, batch) for batch in batches]
    square = _mean_square(x0_BCHW for x0_BCHW, _ in pairs)
    mean_CHW = torch.cat([x0_BCHW.mean((2, 3)) for x0_BCHW, _ in pairs]).mean(0)[:, None, None]
    variance = _mean_square(x0_BCHW - mean_CHW for x0_BCHW, _ in pairs)
    if any(upsampled_BCHW is None for _, upsampled_BCHW in pairs):
        return Trivial(square, variance)
    differences = (x0 - _as_x0(config, upsampled) for x0, upsampled in pairs if upsampled is not None)
    return Trivial(square, variance, _mean_square(differences))


def _as_x0(config: StageConfig, upsampled_BCHW: Tensor) -> Tensor:
    """Return the x0 with which the stage's output is the upsampled image: with a blur, its detail is not zero."""
    detail = DetailTransform.of(config, upsampled_BCHW)
    return detail.encode(upsampled_BCHW) if detail else upsampled_BCHW


def _mean_square(images: Iterable[Tensor]) -> float:
    return float(torch.cat([image_BCHW.square().flatten(1).mean(1) for image_BCHW in images]).mean())


def rounded(values: dict[str, Any], digits: int = 4) -> dict[str, Any]:
    """Return numbers with `digits` significant digits, for reports."""
    return {name: float(f"{v:.{digits}g}") if isinstance(v, float) else v for name, v in values.items()}
