"""What a stage is told: its text, and the picture of the stage before, enlarged and noised.

Shapes: B pictures, C channels, HW the stage's size, hw the size before, L tokens, D numbers a token.
"""

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from imagen.diffusion.schedule import ScheduleConfig, build_label, build_schedule, diffuse


def pad_text(texts: Sequence[Tensor], length: int = 0) -> tuple[Tensor, Tensor]:
    """Embeddings [L_i, D] to one zero-padded [B, L, D] and its mask [B, L], True at tokens; L is at least `length`."""
    length = max(length, *(len(text) for text in texts))
    text_BLD = texts[0].new_zeros(len(texts), length, texts[0].shape[1])
    for padded_LD, text_LD in zip(text_BLD, texts, strict=True):
        padded_LD[: len(text_LD)] = text_LD
    lengths_B1 = torch.tensor([[len(text)] for text in texts])
    return text_BLD, torch.arange(length) < lengths_B1


def text_conditioning(
    texts: Sequence[Tensor], negatives: Sequence[Tensor], device: torch.device, length: int = 0
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """`text` and `text_mask` of the guided and of the unguided half of a batch, padded to one length.

    negatives: what guidance leads away from, one a picture. length: pad to this at least. With the same length in
    every batch, rounding (in bfloat16 a visible difference) does not depend on the longest prompt of the batch.
    """
    B = len(texts)
    both_BLD, both_BL = pad_text([*texts, *negatives], length)
    # Attention's fastest kernel on a GPU takes no mask, and texts that an encoder pads itself need none.
    masked = device.type == "cpu" or not bool(both_BL.all())
    cond, uncond = (
        {"text": both_BLD[half].to(device)} | ({"text_mask": both_BL[half].to(device)} if masked else {})
        for half in (slice(B), slice(B, None))
    )
    return cond, uncond


def low_res_conditioning(
    high_BCHW: Tensor, level: float, schedule: ScheduleConfig, resolution: int, eps_BCHW: Tensor
) -> dict[str, Tensor]:
    """Conditioning augmentation (Imagen, 2205.11487, sec. 2.4): noise once at `level`, say so.

    high_BCHW: enlarged pictures in [-1, 1]. level: a in [0, 1]; the noise level is lambda = schedule(a), as in
    training, where a is uniform in [0, 1]. So a = 0 is not a special case: it is the cleanest picture of training.
    eps_BCHW: standard normal noise.
    """
    level_B = torch.full((len(high_BCHW),), level, dtype=torch.float64)
    logsnr_B = build_schedule(schedule, resolution)(level_B).float()
    label_B = build_label(schedule)(logsnr_B).to(high_BCHW.device)
    return {"low_res": diffuse(high_BCHW, eps_BCHW, logsnr_B.to(high_BCHW.device)), "low_res_noise": label_B}


def to_uint8(x_BCHW: Tensor) -> Tensor:
    """[-1, 1] to the nearest of 0..255, on the CPU.

    Stages hand pictures on in this form. So enlarging a picture that was read from a PNG
    gives the same as having sampled straight through.
    """
    return ((x_BCHW.clamp(-1, 1) + 1) * 127.5).round().to("cpu", torch.uint8)


def from_uint8(picture: Tensor) -> Tensor:
    """0..255 to float32 in [-1, 1]."""
    return picture.float() / 127.5 - 1


def to_images(picture_BCHW: Tensor) -> list[Image.Image]:
    """uint8 pictures of 1 or 3 channels as PIL images (L or RGB)."""
    arrays = picture_BCHW.permute(0, 2, 3, 1).numpy()
    return [Image.fromarray(np.ascontiguousarray(a[..., 0] if a.shape[-1] == 1 else a)) for a in arrays]


def from_images(images: Sequence[Image.Image], channels: int) -> Tensor:
    """PIL images of one size as uint8 BCHW, converted to L (1 channel) or RGB (3)."""
    arrays = [np.array(image.convert("L" if channels == 1 else "RGB"), dtype=np.uint8) for image in images]
    stacked = torch.from_numpy(np.stack(arrays))
    return stacked[:, None] if channels == 1 else stacked.permute(0, 3, 1, 2)
