"""Samplers, which turn noise into images along a list of log-SNRs. Each has a file of its name.

registry.py  the names of samplers and their registration; does not import torch
base.py      the base class with its loop, the arguments of a step, the log-SNRs of the steps
NAME.py      the sampler NAME: a frozen dataclass of its options, with its step

A custom sampler is one file anywhere. Importing the file registers the sampler:

    from imagen.diffusion.samplers import Sampler, Step, register

    @register("euler")
    @dataclass(frozen=True, kw_only=True)
    class Euler(Sampler):
        ...

`examples/sampler.py` is a complete example. `imagen sample --help`, the checks of configs and the table in the
documentation read the registry.
"""

from typing import TYPE_CHECKING, Any

from imagen.diffusion.samplers.registry import create_sampler, register, sampler_class, sampler_names, samplers_table

if TYPE_CHECKING:
    from imagen.diffusion.samplers.base import Levels, Noise, OnStep, Sampler, Spacing, Step, step_logsnrs

__all__ = [
    "Levels",
    "Noise",
    "OnStep",
    "Sampler",
    "Spacing",
    "Step",
    "create_sampler",
    "register",
    "sampler_class",
    "sampler_names",
    "samplers_table",
    "step_logsnrs",
]


def __getattr__(name: str) -> Any:
    """Import names from `base`, which needs torch, at their first use, so that listing samplers does not need it."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from imagen.diffusion.samplers import base

    return getattr(base, name)
