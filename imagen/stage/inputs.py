"""Prepare the inputs of a U-Net: pixels, text, and the low-resolution image with conditioning augmentation.

Training, sampling and memory estimates share these functions, so that they agree.

Shapes: B images, C channels, HW the stage's size, hw the previous stage's size, L tokens, D embedding dimension.
"""

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from imagen.diffusion.schedule import build_label, build_schedule, diffuse
from imagen.stage.config import StageConfig
from imagen.stage.resize import upsample
from imagen.text.embeddings import pad_embeddings, pad_to_length


def from_uint8(image: Tensor) -> Tensor:
    """Return pixels 0..255 as float32 in [-1, 1]."""
    return image.float() / 127.5 - 1


def to_uint8(x_BCHW: Tensor) -> Tensor:
    """Round pixels in [-1, 1] to 0..255, on the CPU.

    Stages pass images to each other in this form, so that upsampling a PNG gives the same result as sampling all stages
    at once.
    """
    return ((x_BCHW.clamp(-1, 1) + 1) * 127.5).round().to("cpu", torch.uint8)


def to_images(image_BCHW: Tensor) -> list[Image.Image]:
    """Return uint8 images of 1 or 3 channels as PIL images (L or RGB)."""
    arrays = image_BCHW.permute(0, 2, 3, 1).numpy()
    return [Image.fromarray(np.ascontiguousarray(a[..., 0] if a.shape[-1] == 1 else a)) for a in arrays]


def from_images(images: Sequence[Image.Image], channels: int) -> Tensor:
    """Return PIL images of one size as uint8 BCHW, converted to L (1 channel) or RGB (3)."""
    arrays = [np.array(image.convert("L" if channels == 1 else "RGB"), dtype=np.uint8) for image in images]
    stacked = torch.from_numpy(np.stack(arrays))
    return stacked[:, None] if channels == 1 else stacked.permute(0, 3, 1, 2)


def text_inputs(text_BLD: Tensor, mask_BL: Tensor | None) -> dict[str, Tensor]:
    """Return embeddings and their mask as arguments of a U-Net. mask_BL: None where every token is text."""
    return {"text": text_BLD} if mask_BL is None else {"text": text_BLD, "text_mask": mask_BL}


def guidance_text(
    texts: Sequence[Tensor], negatives: Sequence[Tensor], device: torch.device, length: int = 0
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return the text inputs of the conditional and the unconditional half of a batch, padded to one length.

    negatives: one embedding per image, the unconditional one or that of a negative prompt. length: pad to at least
    this. With the same length in every batch, rounding (visible in bfloat16) does not depend on the longest prompt of
    the batch.
    """
    B = len(texts)
    both_BLD, both_BL = pad_embeddings([*texts, *negatives], length)
    # The fastest attention kernel on GPUs takes no mask, and texts with `padding` "full" need none.
    masked = device.type == "cpu" or not bool(both_BL.all())
    cond, uncond = (
        text_inputs(both_BLD[half].to(device), both_BL[half].to(device) if masked else None)
        for half in (slice(B), slice(B, None))
    )
    return cond, uncond


def drop_text(text_BLD: Tensor, mask_BL: Tensor, dropped_B: Tensor, unconditional_LD: Tensor) -> tuple[Tensor, Tensor]:
    """Replace the text of the dropped samples by the unconditional embedding [L0, D], with its mask."""
    length = max(text_BLD.shape[1], len(unconditional_LD))
    text_BLD, mask_BL = pad_to_length(text_BLD, mask_BL, length)
    null_1LD = unconditional_LD.to(text_BLD)[None]
    null_1L = torch.ones(1, len(unconditional_LD), dtype=torch.bool, device=text_BLD.device)
    null_1LD, null_1L = pad_to_length(null_1LD, null_1L, length)
    return (
        torch.where(dropped_B[:, None, None], null_1LD, text_BLD),
        torch.where(dropped_B[:, None], null_1L, mask_BL),
    )


def upsample_low_res(low_BChw: Tensor, size: tuple[int, int], config: StageConfig) -> Tensor:
    """Return uint8 low-resolution images as pixels in [-1, 1] at the stage's `size` = (height, width)."""
    return upsample(from_uint8(low_BChw), size, config.low_res_filter)


def augmentation_noise(config: StageConfig, level_B: Tensor) -> tuple[Tensor, Tensor]:
    """Return log-SNR and noise label, float32 [B], of conditioning augmentation at levels a in [0, 1] (float64).

    Training draws a uniformly from [0, 1], so a = 0 is no special case: it is the cleanest image in training.
    """
    logsnr_B = build_schedule(config.low_res_schedule, config.resolution)(level_B).float()
    return logsnr_B, build_label(config.low_res_schedule)(logsnr_B)


def low_res_inputs(upsampled_BCHW: Tensor, eps_BCHW: Tensor, logsnr_B: Tensor, label_B: Tensor) -> dict[str, Tensor]:
    """Return the arguments of a U-Net for conditioning augmentation (Imagen, 2205.11487, sec. 2.4).

    upsampled_BCHW: in [-1, 1]. eps_BCHW: standard normal noise. logsnr_B, label_B: see `augmentation_noise`.
    """
    return {"low_res": diffuse(upsampled_BCHW, eps_BCHW, logsnr_B), "low_res_noise": label_B}
