"""Suggest a keyword argument in place of an unknown one: the closest name, or the equivalent of one in diffusers."""

import inspect
from collections.abc import Callable, Iterable
from functools import wraps
from typing import ParamSpec, TypeVar

from imagen.errors import suggest

P = ParamSpec("P")
R = TypeVar("R")

# Arguments of diffusers, and their equivalents here.
OURS = {
    "callback": "`on_step`",
    "callback_on_step_end": "`on_step`",
    "control_image": "`start` (to upsample it) or `init` (image-to-image)",
    "device_map": "`device`",
    "generator": "`seeds`, whole numbers",
    "guidance_scale": "`guidance`",
    "height": "`size=(height, width)`",
    "image": "`start` (to upsample it) or `init` (image-to-image)",
    "image_guidance_scale": "`guidance`",
    "latents": "`seeds`: an image is a function of its prompt and its seed",
    "mask_image": "`mask`",
    "negative_prompt": "`negative`",
    "negative_prompt_embeds": "`negative`, a float tensor [L, D]",
    "noise_level": "`low_res_noise`, from 0 to 1",
    "num_images_per_prompt": "a list: `sample([prompt] * 4, seeds=[0, 1, 2, 3])`",
    "num_inference_steps": "`steps`",
    "output_type": "`output`",
    "prompt": "`prompts`, the first argument",
    "prompt_embeds": "`prompts`, a list of float tensors [L, D]",
    "rows": "`micro_batch`",
    "scheduler": "`sampler`",
    "seed": "`seeds`, one for all images or a list",
    "timesteps": "`steps` and `spacing`",
    "torch_dtype": "`precision`",
    "variant": "`precision`",
    "width": "`size=(height, width)`",
}


def hint(name: str, known: Iterable[str]) -> str:
    """Return "; the equivalent here is ..." or "; did you mean ...?" for an unknown argument, or ""."""
    return f"; the equivalent here is {OURS[name]}" if name in OURS else suggest(name, known)


def keyword_hints(function: Callable[P, R]) -> Callable[P, R]:
    """Add a suggestion to the TypeError for an unknown keyword argument of `function`."""
    known = list(inspect.signature(function).parameters)

    @wraps(function)
    def checked(*args: P.args, **kwargs: P.kwargs) -> R:
        for name in kwargs:
            if name not in known:
                elsewhere = name in OURS and not any(f"`{own}`" in OURS[name] for own in known)
                where = ", an argument of `Cascade.sample`" if elsewhere else ""
                raise TypeError(f"{function.__name__}() has no argument {name!r}{hint(name, known)}{where}")
        return function(*args, **kwargs)

    return checked
