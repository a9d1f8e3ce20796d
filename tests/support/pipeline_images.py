"""Images of diffusers' pipelines and of our cascades from the same prompts and noise."""

from pathlib import Path
from typing import Any

import diffusers
import pytest
from PIL import Image
from torch import Tensor

from imagen.cascade import Cascade
from imagen.diffusion.noise import PictureNoise
from imagen.stage import sampling as stage_module
from imagen.stage.inputs import to_uint8

PROMPTS = ["A red apple ", "the green octopus on a table"]
SEEDS = [3, 4]


class OurNoise:
    """Returns our random numbers in the order in which diffusers draws them."""

    def __init__(self, resolution: int, upsamples: bool):
        shape, stream = (3, resolution, resolution), 2 * resolution
        self.sampler, self.low_res = (PictureNoise(SEEDS, shape, stream=stream + extra) for extra in (0, 1))
        self.upsamples, self.calls = upsamples, 0

    def __call__(self, shape: Any, **options: Any) -> Tensor:
        self.calls += 1
        noise = self.low_res() if self.upsamples and self.calls == 2 else self.sampler()
        assert noise.shape == shape
        return noise


def diffusers_images(
    monkeypatch: pytest.MonkeyPatch, folder: Path, image: list[Image.Image] | None, steps: int, **parts: Any
) -> Tensor:
    """Return the images of diffusers, in [-1, 1]."""
    from diffusers.pipelines.deepfloyd_if import pipeline_if, pipeline_if_superresolution
    from diffusers.schedulers import scheduling_ddpm

    kind = diffusers.IFPipeline if image is None else diffusers.IFSuperResolutionPipeline
    pipeline = kind.from_pretrained(folder, **parts)
    pipeline.set_progress_bar_config(disable=True)
    noise = OurNoise(pipeline.unet.config.sample_size, image is not None)
    for module in (pipeline_if, pipeline_if_superresolution, scheduling_ddpm):
        monkeypatch.setattr(module, "randn_tensor", noise)
    options = {"guidance_scale": 7.0} if image is None else {"image": image, "noise_level": 250, "guidance_scale": 4.0}
    made = pipeline(PROMPTS, num_inference_steps=steps, clean_caption=False, output_type="pt", **options)
    return made.images.clamp(-1, 1)  # the PIL output is clamped, "pt" is not


def our_images(monkeypatch: pytest.MonkeyPatch, cascade: Cascade, steps: int, **options: Any) -> list[Tensor]:
    """Return the images of each of our stages, in [-1, 1], before rounding to 8 bits."""
    images: list[Tensor] = []

    def record(x_BCHW: Tensor) -> Tensor:
        images.append(x_BCHW.clamp(-1, 1))
        return to_uint8(x_BCHW)

    monkeypatch.setattr(stage_module, "to_uint8", record)
    cascade.sample(PROMPTS, seeds=SEEDS, steps=steps, precision="fp32", progress=False, **options)
    return images


def difference(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max())
