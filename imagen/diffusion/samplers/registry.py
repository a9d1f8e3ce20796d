"""Find samplers by name: modules of this package, and classes registered by other code. Does not import torch."""

import dataclasses
import importlib
import pkgutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from imagen.errors import UserError, suggest

if TYPE_CHECKING:
    from imagen.diffusion.samplers.base import Sampler

S = TypeVar("S", bound="type[Sampler]")
_PACKAGE = __name__.rpartition(".")[0]
_NO_SAMPLERS = ("base", "registry")  # every other module of the package contains the sampler of its name
registered: "dict[str, type[Sampler]]" = {}


def register(name: str) -> Callable[[S], S]:
    """Register a class as the sampler `name`. It must be a frozen dataclass; its fields are the options, with defaults.

    Raises ValueError if the name is taken or is not a lower-case identifier, or if the class is not a dataclass.
    """

    if not (name.isidentifier() and name.islower()):
        raise ValueError(f"{name!r} cannot name a sampler: use lower-case letters, digits and underscores")

    def decorate(cls: S) -> S:
        known = registered.get(name)
        if known is not None and (known.__module__, known.__qualname__) != (cls.__module__, cls.__qualname__):
            raise ValueError(f"sampler {name!r} is already registered, as {known.__module__}.{known.__qualname__}")
        if "__dataclass_params__" not in vars(cls):  # an inherited one would lack the class's own options
            raise ValueError(
                f"{cls.__qualname__} is not a dataclass: put @dataclass(frozen=True) below @register({name!r})"
            )
        registered[name] = cls
        return cls

    return decorate


def sampler_names() -> tuple[str, ...]:
    """Return the names of all samplers: those of this package, then others that were registered."""
    found = pkgutil.iter_modules([str(Path(__file__).parent)])
    ours = sorted(module.name for module in found if module.name not in _NO_SAMPLERS)
    return tuple(dict.fromkeys([*ours, *registered]))


def sampler_class(name: str) -> "type[Sampler]":
    """Return the class of a sampler. Raises UserError, with the nearest name, if it does not exist."""
    if name not in sampler_names():
        known = sampler_names()
        raise UserError(f"unknown sampler {name!r}{suggest(str(name), known, 'choose ' + ', '.join(known))}")
    if name not in registered:
        importlib.import_module(f"{_PACKAGE}.{name}")
    return registered[name]


def create_sampler(name: str, options: Mapping[str, Any] | None = None) -> "Sampler":
    """Return the sampler `name` with these options. Raises UserError for an unknown name, option or value."""
    cls = sampler_class(name)
    options = options or {}
    known = option_names(name)
    for option in options:
        if option not in known:
            listed = f"its options are {', '.join(known)}" if known else "it has none"
            raise UserError(f"sampler {name!r} has no option {option!r}{suggest(option, known, listed)}")
    return cls(**options)


def option_names(name: str) -> tuple[str, ...]:
    """Return the names of a sampler's options."""
    return tuple(field.name for field in dataclasses.fields(sampler_class(name)))


def samplers_table() -> str:
    """Return the Markdown table of samplers in `docs/`, with the first line of each class's docstring."""
    rows = ["| name | order | noise | options | |", "|---|---|---|---|---|"]
    for name in sampler_names():
        cls = sampler_class(name)
        options = ", ".join(f"`{field.name}` ({field.default})" for field in dataclasses.fields(cls)) or "-"
        text = (cls.__doc__ or "").strip().splitlines()[0].rstrip(".").replace("|", "\\|")
        rows.append(f"| `{name}` | {cls.order} | {'yes' if cls().stochastic else 'no'} | {options} | {text} |")
    return "\n".join(rows) + "\n"
