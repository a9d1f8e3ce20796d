"""Presets: `PRESETS` maps a name to the function that returns its `Experiment`.

Every public function without parameters in a module of this package is a preset, as are those in the `presets` modules
of `imagen.emoji`.
"""

import importlib
import inspect
import pkgutil
from collections.abc import Callable
from types import ModuleType

from imagen.emoji import presets as emoji
from imagen.emoji.fluent import presets as fluent
from imagen.errors import UserError, suggest
from imagen.train.experiment import Experiment


def _functions(module: ModuleType) -> dict[str, Callable[[], Experiment]]:
    """Return the presets that `module` defines."""
    return {
        name: function
        for name, function in vars(module).items()
        if inspect.isfunction(function) and function.__module__ == module.__name__ and not name.startswith("_")
        if not inspect.signature(function).parameters
    }


def _modules() -> list[ModuleType]:
    own = [importlib.import_module(f"{__name__}.{module.name}") for module in pkgutil.iter_modules(__path__)]
    return [emoji, fluent, *own]


PRESETS = {name: function for module in _modules() for name, function in _functions(module).items()}


def preset(name: str) -> Experiment:
    """Return the preset of that name. Raises UserError with the nearest name if there is none."""
    if name not in PRESETS:
        raise UserError(f"unknown preset {name!r}{suggest(name, PRESETS)} (`imagen presets` lists them)")
    return PRESETS[name]()
