"""Sample a stage with a record of its x0 estimates, and measure images."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from imagen.diffusion.guidance import Denoiser, Estimate
from imagen.diffusion.noise import NOISES
from imagen.diffusion.samplers.base import step_logsnrs
from imagen.diffusion.schedule import build_label, build_schedule
from imagen.stage.config import SamplingConfig
from imagen.stage.denoiser import build_conditioning, build_guidance, limit_estimates
from imagen.stage.sampling import Stage

BEYOND = 1.1  # magnitude of an x0 estimate from which clipping changes an image visibly
EDGE = 0.98  # magnitude of a saturated value: within 2.5 grey levels of 0 or 255


@dataclass(frozen=True)
class Drawn:
    """Hold samples, [B, C, H, W] float32 in [-1, 1] (NaN where sampling failed), and what thresholding clipped."""

    images: Tensor
    clipped_B: Tensor  # share of values of all x0 estimates, before thresholding, whose magnitude exceeds 1.1

    @property
    def clipped(self) -> float:
        """Share of clipped values over all images."""
        return float(self.clipped_B.mean())

    @property
    def saturated(self) -> float:
        """Share of values at black or white."""
        return saturated(self.images)

    def first(self, count: int) -> "Drawn":
        """Return the first `count` samples."""
        return Drawn(self.images[:count], self.clipped_B[:count])


class _Record:
    """Wrap a denoiser; count the values of its estimates beyond the range of images."""

    def __init__(self, denoise: Denoiser, scale: float, offset: Tensor | None):
        self.denoise, self.scale, self.offset = denoise, scale, offset
        self.shares: list[Tensor] = []  # [B], of each evaluation

    def __call__(self, x_BCHW: Tensor, logsnr_B: Tensor, /) -> Estimate:
        estimate = self.denoise(x_BCHW, logsnr_B)
        x0_BCHW = estimate.x0 if self.offset is None else self.scale * estimate.x0 + self.offset
        self.shares.append((x0_BCHW.abs() > BEYOND).float().flatten(1).mean(1).cpu())
        return estimate


@torch.no_grad()
def draw(
    stage: Stage,
    seeds: Sequence[int],
    *,
    device: torch.device,
    dtype: torch.dtype | None,
    texts: Sequence[Tensor] | None = None,
    unconditional: Tensor | None = None,
    low_BChw: Tensor | None = None,
    settings: SamplingConfig | None = None,
) -> Drawn:
    """Sample one image per seed as `Stage.sample` does, and count the estimates that thresholding clips.

    texts: embeddings [L_i, D]. low_BChw: uint8 images of the stage before. settings: default: the stage's.
    """
    config, settings = stage.config, settings or stage.config.sampling
    height = width = config.resolution
    if low_BChw is not None and config.low_resolution is not None:
        height, width = (side * config.resolution // config.low_resolution for side in low_BChw.shape[-2:])
    shape = (config.unet.image_channels, height, width)
    noise = NOISES["philox"](seeds, shape, device, stream=2 * config.resolution)
    reads_text = config.unet.text_width is not None and texts is not None and unconditional is not None
    conditioning = build_conditioning(
        config,
        settings,
        size=(height, width),
        device=device,
        texts=texts if reads_text else None,
        negatives=[unconditional] * len(seeds) if reads_text and unconditional is not None else None,
        low_BChw=low_BChw,
        augmentation_eps=NOISES["philox"](seeds, shape, device, stream=2 * config.resolution + 1),
    )
    detail = conditioning.detail
    logsnrs = step_logsnrs(
        build_schedule(config.schedule, config.resolution),
        settings.steps,
        spacing=settings.spacing,
        logsnr_range=settings.logsnr_range,
    )
    with stage.loaded_unet(device, dtype) as predict:
        guided = build_guidance(predict, config, settings, conditioning, build_label(config.schedule))
        record = _Record(
            guided, 1.0 if detail is None else detail.std, None if detail is None else detail.upsampled_BCHW
        )
        denoise = limit_estimates(record, settings, detail, None)
        x_BCHW = settings.build_sampler().sample(denoise, noise(), logsnrs, noise=noise)
    images = (x_BCHW if detail is None else detail.decode(x_BCHW)).float().cpu().clamp(-1, 1)
    return Drawn(images, torch.stack(record.shares).mean(0))


def with_guidance(settings: SamplingConfig, guidance: float) -> SamplingConfig:
    return replace(settings, guidance=guidance)


def saturated(images_BCHW: Tensor) -> float:
    """Return the share of values at black or white."""
    return float((images_BCHW.abs() > EDGE).float().mean())


def roughness(images_BCHW: Tensor) -> float:
    """Return the median over images of E (difference of neighbours)^2 / (2 variance): 1 for white noise, 0 for plain.

    Images without contrast are left out; NaN if all are.
    """
    variance_BC = images_BCHW.flatten(2).var(2)
    across, down = images_BCHW.diff(dim=-1).square(), images_BCHW.diff(dim=-2).square()
    differences_B = (across.flatten(1).mean(1) + down.flatten(1).mean(1)) / 2
    variance_B = variance_BC.mean(1)
    ratios = (differences_B / (2 * variance_B))[variance_B > 1e-4]
    return float(ratios.median()) if len(ratios) else float("nan")


def contrast(images_BCHW: Tensor) -> float:
    """Return the mean standard deviation within an image and channel."""
    return float(images_BCHW.flatten(2).std(2).mean())


def diversity(images_BCHW: Tensor) -> float:
    """Return the root of the mean squared difference between two of the images."""
    B = len(images_BCHW)
    centred = images_BCHW - images_BCHW.mean(0)
    return float((2 * centred.square().mean() * B / max(1, B - 1)).sqrt())
