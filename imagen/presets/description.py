"""Describe presets by their sizes, for `imagen presets`."""

from typing import Any

from imagen.train.experiment import Experiment
from imagen.train.flops import image_flops, meta_unet


def describe(experiment: Experiment) -> dict[str, Any]:
    """Return a preset's name, parameters, resolutions in pixels, and GFLOP per forward pass of a `side`-pixel image."""
    stage = experiment.stage
    unet = meta_unet(experiment)
    return {
        "name": experiment.name,
        "parameters": sum(p.numel() for p in unet.parameters()),
        "resolution": stage.resolution,
        "low_resolution": stage.low_resolution,
        "side": experiment.data.crop or stage.resolution,
        "gflop": round(image_flops(unet, experiment) / 1e9, 2),
    }
