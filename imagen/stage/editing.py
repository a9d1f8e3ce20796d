"""Image-to-image and inpainting.

Image-to-image takes only the last of the sampler's steps. It starts from the input image, noised to the level at which
these steps begin. Inpainting replaces the unmasked region of every x0 estimate by the input image.

Shapes: B images, C channels, HW the stage's size.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from imagen.diffusion.guidance import Denoiser, Estimate
from imagen.stage.inputs import from_images, from_uint8


@dataclass(frozen=True, kw_only=True)
class Edit:
    """Input images at the size of a stage."""

    picture_BCHW: Tensor  # in [-1, 1]
    strength: float = 1.0  # share of the sampler's steps that are taken, in (0, 1]; 1: start from pure noise
    mask_B1HW: Tensor | None = None  # in [0, 1]: 1 regenerates, 0 preserves; None: regenerate everything

    def to(self, device: torch.device) -> "Edit":
        """Return the edit with its tensors on `device`."""
        mask = None if self.mask_B1HW is None else self.mask_B1HW.to(device)
        return Edit(picture_BCHW=self.picture_BCHW.to(device), strength=self.strength, mask_B1HW=mask)

    def last_logsnrs(self, logsnrs: Tensor) -> Tensor:
        """Return the log-SNRs of the last `steps_taken` steps."""
        steps = len(logsnrs) - 1
        return logsnrs[steps - steps_taken(self.strength, steps) :]


def steps_taken(strength: float, steps: int) -> int:
    """Return how many of `steps` are taken: `strength` times as many, rounded up, at least one."""
    return max(1, math.ceil(strength * steps - 1e-9))


@dataclass(frozen=True)
class InpaintingDenoiser:
    """Replace the unmasked region of x0 estimates by the input image.

    A sampler's step is linear in x and x0. So where x0 is constant, x is that image noised to the current level, for
    every sampler. This is equivalent to replacing x_t at each level (RePaint, 2201.09865, eq. 8), without extra noise.
    Unmasked pixels of the result are exact. RePaint's jumps back in time, which make the two regions fit better, are
    omitted because they multiply the number of steps.
    """

    denoise: Denoiser
    picture_BCHW: Tensor
    mask_B1HW: Tensor  # 1: use the denoiser's estimate

    def __call__(self, x_BCHW: Tensor, logsnr_B: Tensor, /) -> Estimate:
        estimate = self.denoise(x_BCHW, logsnr_B)
        return estimate._replace(x0=torch.lerp(self.picture_BCHW, estimate.x0, self.mask_B1HW))


def build_edit(
    pictures: Sequence[Image.Image],
    masks: Sequence[Image.Image] | None,
    *,
    size: tuple[int, int],
    strength: float,
    channels: int,
) -> Edit:
    """Return the edit of PIL images and masks (white is regenerated), resized to `size` = (height, width)."""
    height, width = size

    def resized(image: Image.Image) -> Image.Image:
        return image if image.size == (width, height) else image.resize((width, height), Image.Resampling.LANCZOS)

    mask = None
    if masks is not None:
        arrays = [np.asarray(_resized_mask(image.convert("L"), size), dtype=np.float32) / 255 for image in masks]
        mask = torch.from_numpy(np.stack(arrays))[:, None]
    picture = from_uint8(from_images([resized(image.convert("RGB")) for image in pictures], channels))
    return Edit(picture_BCHW=picture, strength=strength, mask_B1HW=mask)


def _resized_mask(mask: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Resize bilinearly: the ringing of sharper filters would slightly regenerate the unmasked region."""
    height, width = size
    return mask if mask.size == (width, height) else mask.resize((width, height), Image.Resampling.BILINEAR)
