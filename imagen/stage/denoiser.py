"""Build the denoiser that a sampler calls from a U-Net: x0 estimate, guidance, thresholding, inpainting.

Shapes: see `imagen.stage.inputs`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from imagen.diffusion.guidance import ClassifierFree, Denoiser, DynamicThreshold, StaticThreshold, predict_x0
from imagen.diffusion.schedule import NoiseLabel, bind_label, build_label
from imagen.models.text_cache import TextCachingUNet
from imagen.models.unet import UNet
from imagen.precision import autocast
from imagen.stage.config import SamplingConfig, StageConfig
from imagen.stage.detail import DetailTransform
from imagen.stage.editing import Edit, InpaintingDenoiser
from imagen.stage.inputs import augmentation_noise, guidance_text, low_res_inputs, upsample_low_res
from imagen.stage.tiles import Tile, TiledUNet

Predict = Callable[..., Tensor]  # (x_BCHW, noise_B, **conditions), as `imagen.models.unet.UNet` is called


@dataclass(frozen=True)
class Conditioning:
    """The conditioning of a batch, which is the same in all steps of a sampler."""

    cond: Mapping[str, Tensor] = field(default_factory=dict)  # arguments of the U-Net
    uncond: Mapping[str, Tensor] = field(default_factory=dict)  # the arguments that differ without the prompt
    detail: DetailTransform | None = None  # for a stage that generates detail


def build_conditioning(
    config: StageConfig,
    settings: SamplingConfig,
    *,
    size: tuple[int, int],
    device: torch.device,
    texts: Sequence[Tensor] | None = None,
    negatives: Sequence[Tensor] | None = None,
    text_length: int = 0,
    low_BChw: Tensor | None = None,
    augmentation_eps: Callable[[], Tensor] | None = None,
) -> Conditioning:
    """Prepare the conditioning of a batch of images of `size` = (height, width).

    texts: embeddings [L_i, D]; negatives: see `guidance_text`; text_length: L is at least this.
    low_BChw: uint8 images of the stage before. augmentation_eps: returns the standard normal noise [B, C, *size] of
        conditioning augmentation.
    Raises ValueError if something that the stage needs is missing.
    """
    cond: dict[str, Tensor] = {}
    uncond: dict[str, Tensor] = {}
    detail: DetailTransform | None = None
    if config.unet.text_width is not None:
        if texts is None or negatives is None:
            raise ValueError("this stage is conditioned on text: texts and unconditional are needed")
        cond, uncond = guidance_text(texts, negatives, device, text_length)
    if config.low_resolution is not None:
        if low_BChw is None or augmentation_eps is None:
            raise ValueError("this stage upsamples images: low_BChw is needed")
        eps_BCHW = augmentation_eps()
        upsampled_BCHW = upsample_low_res(low_BChw.to(device), size, config)
        level_B = torch.full((len(low_BChw),), settings.low_res_noise, dtype=torch.float64)
        logsnr_B, label_B = augmentation_noise(config, level_B)
        cond |= low_res_inputs(upsampled_BCHW, eps_BCHW, logsnr_B.to(device), label_B.to(device))
        detail = DetailTransform.of(config, upsampled_BCHW)
    return Conditioning(cond, uncond, detail)


def build_predict(unet: nn.Module, dtype: torch.dtype | None) -> Predict:
    """Return a function that evaluates `unet` under autocast to `dtype` (None: float32).

    Cross-attention keys and values are computed once per text: see `TextCachingUNet`.
    """
    caching: Predict = TextCachingUNet(unet) if isinstance(unet, UNet) else unet

    def predict(x_BCHW: Tensor, noise_B: Tensor, **conditions: Tensor) -> Tensor:
        with autocast(x_BCHW.device, dtype):
            output = (caching if "text" in conditions else unet)(
                x_BCHW.contiguous(memory_format=torch.channels_last), noise_B, **conditions
            )
        # The next replay of a CUDA graph overwrites this output, and samplers keep outputs for a step.
        return output.clone() if output.is_cuda else output

    return predict


def build_denoiser(
    predict: Predict,
    config: StageConfig,
    settings: SamplingConfig,
    conditioning: Conditioning,
    *,
    edit: Edit | None = None,
    tile: Tile | None = None,
) -> Denoiser:
    """Return the denoiser of a batch: x0 estimates with guidance, thresholding and inpainting.

    tile: if given, evaluate the U-Net on tiles of the images.
    """
    network = predict if tile is None else TiledUNet(predict, tile)
    guided = build_guidance(network, config, settings, conditioning, build_label(config.schedule))
    return limit_estimates(guided, settings, conditioning.detail, edit)


def build_guidance(
    predict: Predict,
    config: StageConfig,
    settings: SamplingConfig,
    conditioning: Conditioning,
    label: NoiseLabel,
) -> ClassifierFree:
    """Return a denoiser with classifier-free guidance. label: noise label of a log-SNR, for the U-Net."""
    if settings.variance == "fixed":
        predict = _without_variance(predict, config.unet.image_channels)
    return ClassifierFree(
        predict_x0(predict, config.objective.prediction, label),
        conditioning.cond,
        conditioning.uncond,
        settings.guidance if conditioning.uncond else 1.0,  # a stage without text has nothing to guide
        settings.guidance_interval,
        settings.guidance_rescale,
    )


def limit_estimates(
    denoise: Denoiser, settings: SamplingConfig, detail: DetailTransform | None, edit: Edit | None
) -> Denoiser:
    """Return `denoise` with thresholding, and with the unmasked region of `edit` in its estimates."""

    def in_range(denoise: Denoiser) -> Denoiser:
        if settings.threshold == "static":
            denoise = StaticThreshold(denoise)
        elif settings.threshold == "dynamic":
            denoise = DynamicThreshold(denoise, settings.percentile, settings.max_scale)
        if edit is not None and edit.mask_B1HW is not None:
            denoise = InpaintingDenoiser(denoise, edit.picture_BCHW, edit.mask_B1HW)
        return denoise

    return in_range(denoise) if detail is None else detail.in_pixels(denoise, in_range)


def _without_variance(predict: Predict, channels: int) -> Predict:
    """Return `predict` without the learned variance, the second half of the output channels."""
    return lambda x_BCHW, noise_B, **conditions: predict(x_BCHW, noise_B, **conditions)[:, :channels]


def build_compiled_denoisers(
    unet: nn.Module,
    dtype: torch.dtype | None,
    config: StageConfig,
    settings: SamplingConfig,
    conditioning: Conditioning,
    edit: Edit | None,
    device: torch.device,
) -> Callable[[float], Denoiser]:
    """Return a function from log-SNR to denoiser, for compiled steps.

    There are at most two denoisers, one inside and one outside the guidance interval. Everything that is equal in all
    steps, such as cross-attention keys and values, is computed here.
    """
    label, predict = bind_label(config.schedule, device), build_predict(unet, dtype)

    def build(settings: SamplingConfig) -> Denoiser:
        guidance = build_guidance(predict, config, settings, conditioning, label)
        conditions: dict[str, Any] = guidance.cond if guidance.weight == 1 else guidance.both
        if "text" in conditions and isinstance(unet, UNet):
            with autocast(device, dtype):
                conditions["text"] = unet.cache_text(conditions["text"], conditions.get("text_mask"))
        return limit_estimates(guidance, settings, conditioning.detail, edit)

    guided = build(replace(settings, guidance_interval=None))
    if settings.guidance_interval is None:
        return lambda logsnr: guided
    lower, upper = settings.guidance_interval
    plain = build(replace(settings, guidance_interval=None, guidance=1.0))
    return lambda logsnr: guided if lower <= logsnr <= upper else plain
