"""Operations that training asks for, and what a device could do in the same time.

MFU (model FLOPs utilisation, PaLM, 2204.02311, App. B) = operations that the model needs for the pictures trained on /
what all devices could have done at their stated peak. The model needs its matrix products and convolutions, forward and
backward, a multiply-add being two; what is computed twice to save memory counts once, the optimizer and all that works
element by element not at all.
"""

import re
from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from imagen.models.unet import UNet
from imagen.precision import autocast_dtype
from imagen.train.experiment import Experiment
from imagen.train.ranks import Ranks

# 10^12 dense operations a second that makers state, by a word of the device's name in torch: with bfloat16, and with
# float32, for which torch takes TF32 in convolutions, nearly all of a U-Net. Narrower names come first.
PEAKS = {
    "GB200": (2500.0, 1250.0),
    "B200": (2250.0, 1125.0),
    "GH200": (989.0, 494.5),
    "H200 NVL": (835.5, 417.5),
    "H200": (989.0, 494.5),
    "H100 NVL": (835.5, 417.5),
    "H100 PCIe": (756.0, 378.0),
    "H100": (989.0, 494.5),
    "H800 PCIe": (756.0, 378.0),
    "H800": (989.0, 494.5),
    "H20": (148.0, 74.0),
    "A100": (312.0, 156.0),
    "A800": (312.0, 156.0),
    "A30": (165.0, 82.0),
    "A40": (149.7, 74.8),
    "A10": (125.0, 62.5),
    "L40S": (362.0, 183.0),
    "L4": (121.0, 60.0),
    "RTX A6000": (154.8, 77.4),
    "RTX 4090": (165.2, 82.6),
    "RTX 3090": (71.0, 35.6),
}


def meta_unet(experiment: Experiment) -> UNet:
    """The network without its numbers: to count what it needs."""
    with torch.device("meta"):
        return UNet(experiment.stage.unet)


def picture_flops(unet: UNet, experiment: Experiment, tokens: int | None = None, *, backward: bool = False) -> int:
    """Operations for one picture of the size that is trained on, with so many text tokens (default: the most).

    unet: on the meta device. There attention is taken apart into products that the counter knows, and nothing runs.
    """
    stage, side = experiment.stage, experiment.data.crop or experiment.stage.resolution
    with torch.device("meta"):
        x_BCHW, label_B = torch.empty(1, stage.unet.image_channels, side, side), torch.empty(1)
        cond: dict[str, Tensor] = {}
        if experiment.text is not None:
            cond["text"] = torch.empty(1, tokens or experiment.text.max_tokens, experiment.text.width)
        if stage.unet.low_res:
            cond |= {"low_res": x_BCHW, "low_res_noise": label_B}
    with FlopCounterMode(display=False) as counter, torch.set_grad_enabled(backward):
        out_BCHW = unet(x_BCHW, label_B, **cond)
        if backward:
            out_BCHW.sum().backward()
    return counter.get_total_flops()


def build_mfu(experiment: Experiment, ranks: Ranks) -> Callable[[float, float], float] | None:
    """(pictures a second of all ranks, text tokens a picture as it was padded) -> MFU, from 0 to 1.

    None where the device's peak is not known. Takes a few seconds for a large network.
    """
    peak = peak_flops(ranks.device, experiment)
    if peak is None:
        return None
    unet, most = meta_unet(experiment), 1 if experiment.text is None else max(2, experiment.text.max_tokens)
    # Text is keys and values, never queries: the count is a straight line over its tokens.
    least_flops, most_flops = (picture_flops(unet, experiment, tokens, backward=True) for tokens in (1, most))
    slope = (most_flops - least_flops) / max(1, most - 1)

    def mfu(images_per_s: float, tokens: float) -> float:
        return images_per_s * (least_flops + slope * (tokens - 1)) / (ranks.world_size * peak)

    return mfu


def peak_flops(device: torch.device, experiment: Experiment) -> float | None:
    """Of one device in the arithmetic of this training, a second: `train.peak_tflops`, else what the maker states."""
    config = experiment.train
    if config.peak_tflops is not None:
        return config.peak_tflops * 1e12
    if device.type != "cuda":
        return None
    tflops = stated_tflops(torch.cuda.get_device_name(device))
    half = autocast_dtype(device, config.precision) is not None
    return None if tflops is None else tflops[0 if half else 1] * 1e12


def stated_tflops(name: str) -> tuple[float, float] | None:
    """With (16 bits, float32), for a device of this name; None for one that is not known, or part of one (MIG)."""
    if " MIG " in f"{name} ":
        return None
    return next((tflops for word, tflops in PEAKS.items() if re.search(rf"\b{word}\b", name)), None)
