"""Define the keyword arguments of a request, for type checkers, editors, help() and hints.

`Cascade.sample`, `Cascade.request`, `write_samples` and `write_upscaled` take them as `**options: Unpack[...]`.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Literal, TypedDict, TypeVar, Union, get_args, get_origin, get_type_hints

import torch
from PIL import Image
from torch import Tensor

from imagen.diffusion.noise import NoiseKind, Variation
from imagen.diffusion.samplers.base import Spacing
from imagen.precision import Precision
from imagen.stage.config import SamplingConfig, Threshold, Variance

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])
# One for all stages that run (or all images), or a list with one for each. mypy takes no `T | ...` as a generic alias.
PerStage = Union[T, Sequence[T]]  # noqa: UP007
PerImage = Union[T, Sequence[T]]  # noqa: UP007
Prompt = str | Tensor  # "" is the unconditional model; a tensor is an embedding, float [L, D]
Size = tuple[int, int]  # (height, width)
Range = tuple[float, float]
Interval = Range | Literal["all"]
Output = Literal["pil", "tensor"]

DEFAULTS: dict[str, Any] = {
    "negative": "",
    "batch_size": 8,
    "precision": "auto",
    "fast": False,
    "noise": "philox",
}  # all others: None


class SamplingOptions(TypedDict, total=False):
    """Fields of `SamplingConfig` that override the stages' own: one per stage, or one for all; None: no override."""

    sampler: Annotated[PerStage[str] | None, "name of a sampler, see `imagen.diffusion.samplers`"]
    sampler_options: Annotated[PerStage[dict[str, float]] | None, "options of the sampler without an argument here"]
    steps: Annotated[PerStage[int] | None, "sampler steps"]
    spacing: Annotated[PerStage[Spacing] | None, "steps uniform in the schedule's time, or in log-SNR"]
    logsnr_range: Annotated[PerStage[Range] | None, "log-SNR of the first and the last step, for spacing in log-SNR"]
    guidance: Annotated[PerStage[float] | None, "guidance scale; 1 is none, and halves the work"]
    guidance_interval: Annotated[
        Interval | Sequence[Interval | None] | None, 'log-SNR range with guidance; "all": guidance everywhere'
    ]
    guidance_rescale: Annotated[PerStage[float] | None, "0 to 1: how far the contrast of unguided images is restored"]
    threshold: Annotated[PerStage[Threshold] | None, "of x0 estimates"]
    percentile: Annotated[PerStage[float] | None, "quantile of dynamic thresholding"]
    max_scale: Annotated[PerStage[float] | None, "largest scale of dynamic thresholding"]
    eta: Annotated[PerStage[float] | None, "`ddim`: scale of the noise, 0 to 1"]
    damping: Annotated[PerStage[float] | None, "deterministic samplers: how much faster noise decreases, 0 to 1"]
    variance: Annotated[PerStage[Variance] | None, "`ddpm`: the network's variance if it has one, or `gamma`"]
    gamma: Annotated[PerStage[float] | None, "`ddpm`: log variance between its lower (0) and upper (1) bound"]
    low_res_noise: Annotated[PerStage[float] | None, "level of conditioning augmentation, 0 to 1"]


class JobOptions(SamplingOptions, total=False):
    """Options of a job with any number of images."""

    settings: Annotated[Sequence[SamplingConfig] | None, "configs that replace the stages' own, one per stage"]
    fast: Annotated[bool, "sample in few steps, by the cascade's `fast` settings, which the options here override"]
    strength: Annotated[
        PerStage[float] | None,
        "share of the steps that are taken from `init`, above 0 to 1; default: 0.7, or 1 with a mask",
    ]
    tile: Annotated[PerStage[int | None] | None, "side in pixels of the tiles of super-resolution stages"]
    micro_batch: Annotated[PerStage[int] | None, "images per network evaluation (default: batch_size)"]
    init: Annotated[PerImage[Image.Image] | None, "input images of image-to-image, resized to each stage"]
    mask: Annotated[PerImage[Image.Image] | None, "region of `init` that is regenerated (white) or preserved (black)"]
    stages: Annotated[int | None, "stop after this many stages of the cascade, including those that `start` skips"]
    scale: Annotated[int | None, "upsample `start` by this factor (default: to the end of the cascade)"]
    size: Annotated[Size | None, "(height, width) of the result; all stages have its aspect ratio"]
    batch_size: Annotated[int, "images at a time; changes speed and memory only"]
    vram: Annotated[float | None, "bound of device memory in GiB: smaller micro-batches, offloading, tiles"]
    device: Annotated[torch.device | str | None, "default: the GPU if there is one"]
    precision: Annotated[Precision, '"auto" is the format in which the device multiplies fastest']
    lora: Annotated[Mapping[str, float] | None, "weight of each LoRA in use, by its name; see `Cascade.load_lora`"]
    noise: Annotated[NoiseKind, "generator of the noise; `torch` regenerates images whose files name none"]


class RequestOptions(JobOptions, total=False):
    """All options of a request."""

    negative: Annotated[PerImage[Prompt], "negative prompts, in place of the unconditional embedding in guidance"]
    seeds: Annotated[PerImage[int | Variation] | None, "whole numbers from 0 (default 0), or Variations of two"]
    start: Annotated[PerImage[Image.Image] | None, "images to upsample, all of one size"]


def takes_options(kind: Any) -> Callable[[F], F]:
    """Add the options of the TypedDict `kind` to a function's signature and docstring, for help() and completion."""

    def decorate(function: F) -> F:
        own = inspect.signature(function)
        parameters = [p for p in own.parameters.values() if p.kind is not inspect.Parameter.VAR_KEYWORD]
        named = {p.name for p in parameters}
        lines = []
        for name, hint in get_type_hints(kind, include_extras=True).items():
            annotation, text = get_args(hint)
            assert get_origin(hint) is Annotated
            lines.append(f"{name}: {text}.")
            if name not in named:
                default = DEFAULTS.get(name)
                parameters.append(
                    inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
                )
        function.__signature__ = own.replace(parameters=parameters)  # type: ignore[attr-defined]
        options = "\n".join(f"    {line}" for line in lines)
        function.__doc__ = f"{inspect.cleandoc(function.__doc__ or '')}\n\nOptions (None: the default):\n{options}\n"
        return function

    return decorate
