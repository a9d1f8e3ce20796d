"""FLOPs of a model, and the MFU of its training.

MFU (model FLOPs utilisation, PaLM, 2204.02311, App. B) = operations that the model needs for the training images /
operations that all devices could do in the same time at their stated peak. The operations of the model are those of its
matrix products and convolutions, forward and backward; a multiply-add counts as two. Recomputation, the optimizer and
elementwise operations do not count.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from imagen.gpus import identify_gpu
from imagen.models.unet import UNet
from imagen.precision import autocast_dtype
from imagen.train.experiment import Experiment
from imagen.train.finetune import adapt
from imagen.train.ranks import Ranks
from imagen.train.shapes import largest_size


def meta_unet(experiment: Experiment) -> UNet:
    """Build the experiment's U-Net on the meta device, with shapes but no data."""
    with torch.device("meta"):
        return UNet(experiment.stage.unet)


def image_flops(unet: UNet, experiment: Experiment, tokens: int | None = None, *, backward: bool = False) -> int:
    """Count the operations for one training image with `tokens` text tokens (default: the maximum).

    unet: on the meta device, where nothing is computed and attention is decomposed into matrix products, which the
    counter includes.
    """
    stage, (height, width) = experiment.stage, largest_size(experiment.stage, experiment.data)
    with torch.device("meta"):
        x_BCHW, label_B = torch.empty(1, stage.unet.image_channels, height, width), torch.empty(1)
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
    """Return a function that computes the MFU (0 to 1) from images per second of all ranks and padded tokens per image.

    Returns None if the device's peak is unknown. Takes a few seconds for a large network.
    """
    peak = peak_flops(ranks.device, experiment)
    if peak is None:
        return None
    unet, most = meta_unet(experiment), 1 if experiment.text is None else max(2, experiment.text.max_tokens)
    adapt(unet, experiment)  # gradients of frozen weights are not computed
    # Text tokens are keys and values but never queries, so the count is linear in their number.
    least_flops, most_flops = (image_flops(unet, experiment, tokens, backward=True) for tokens in (1, most))
    slope = (most_flops - least_flops) / max(1, most - 1)

    def mfu(images_per_s: float, tokens: float) -> float:
        return images_per_s * (least_flops + slope * (tokens - 1)) / (ranks.world_size * peak)

    return mfu


def peak_flops(device: torch.device, experiment: Experiment) -> float | None:
    """Return the peak operations per second of one device in the run's precision; None if it is unknown.

    `train.peak_tflops` overrides the manufacturer's figure.
    """
    config = experiment.train
    if config.peak_tflops is not None:
        return config.peak_tflops * 1e12
    if device.type != "cuda":
        return None
    gpu = identify_gpu(torch.cuda.get_device_name(device))
    low_precision = autocast_dtype(device, config.precision) is not None
    tflops = None if gpu is None else gpu.tflops if low_precision else gpu.tf32_tflops
    return None if tflops is None else tflops * 1e12
