"""Describe presets by their sizes, for `imagen presets`."""

from typing import Any

from imagen.train.experiment import Experiment
from imagen.train.flops import image_flops, meta_unet


def describe(experiment: Experiment) -> dict[str, Any]:
    """Return name, parameters, resolutions in pixels, and GFLOP of one forward pass for one image of `side` pixels."""
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
