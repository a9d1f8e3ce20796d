"""Convert between images and the detail that some super-resolution stages generate in their place.

detail = (image - upsampled low-resolution image) / std (SRDiff, 2104.14951).
"""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from imagen.diffusion.guidance import AffineDenoiser, Denoiser
from imagen.diffusion.samplers import OnStep


@dataclass(frozen=True)
class DetailTransform:
    """Convert between images in [-1, 1] and their detail."""

    upsampled_BCHW: Tensor  # the low-resolution images at the stage's size, without conditioning augmentation
    std: float  # `StageConfig.detail_std`

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
