"""Convert between images and the detail that some super-resolution stages generate in their place.

detail = (image - upsampled low-resolution image) / std (SRDiff, 2104.14951). With `StageConfig.detail_blur`, the
upsampled image is blurred first. Otherwise the textures and halos of a generated low-resolution image stay in the
output unless the network removes them, and conditioning augmentation hides them from it.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from imagen.diffusion.guidance import AffineDenoiser, Denoiser
from imagen.diffusion.samplers import OnStep
from imagen.stage.config import StageConfig


@dataclass(frozen=True)
class DetailTransform:
    """Convert between images in [-1, 1] and their detail."""

    upsampled_BCHW: Tensor  # the low-resolution images at the stage's size, blurred, without conditioning augmentation
    std: float  # `StageConfig.detail_std`

    @classmethod
    def of(cls, config: StageConfig, upsampled_BCHW: Tensor) -> "DetailTransform | None":
        """Return the transform of a stage that generates detail, for upsampled images in [-1, 1]; else None."""
        if config.detail_std is None or config.low_resolution is None:
            return None
        if config.detail_blur:
            upsampled_BCHW = blur(upsampled_BCHW, config.detail_blur * config.resolution / config.low_resolution)
        return cls(upsampled_BCHW, config.detail_std)

    def encode(self, image_BCHW: Tensor) -> Tensor:
        return (image_BCHW - self.upsampled_BCHW) / self.std

    def decode(self, detail_BCHW: Tensor) -> Tensor:
        return self.upsampled_BCHW + self.std * detail_BCHW

    def in_pixels(self, denoise: Denoiser, change: Callable[[Denoiser], Denoiser]) -> Denoiser:
        """Apply `change` to a denoiser of details as if it estimated images, since thresholds apply to pixels."""
        pixels = change(AffineDenoiser(denoise, self.std, self.upsampled_BCHW))
        return AffineDenoiser(pixels, 1 / self.std, -self.upsampled_BCHW / self.std)

    def reporting(self, on_step: OnStep | None) -> OnStep | None:
        """Return a callback for details that calls `on_step` with images."""
        if on_step is None:
            return None
        return lambda i, steps, x_BCHW, x0_BCHW: on_step(i, steps, self.decode(x_BCHW), self.decode(x0_BCHW))


def blur(image_BCHW: Tensor, sigma: float) -> Tensor:
    """Convolve with a Gaussian of standard deviation `sigma` in pixels, cut off at 3 sigma. Borders are replicated."""
    radius = math.ceil(3 * sigma)
    offsets = torch.arange(-radius, radius + 1, device=image_BCHW.device, dtype=image_BCHW.dtype)
    weights = (-0.5 * (offsets / sigma).square()).exp()
    weights = weights / weights.sum()
    channels = image_BCHW.shape[1]
    with torch.autocast(image_BCHW.device.type, enabled=False):
        padded = F.pad(image_BCHW, [radius] * 4, mode="replicate")
        rows = F.conv2d(padded, weights.expand(channels, 1, 1, -1), groups=channels)
        return F.conv2d(rows, weights[:, None].expand(channels, 1, -1, 1), groups=channels)
