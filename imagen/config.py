"""One experiment: everything that decides what a training run does."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn

from imagen.cascade import StageConfig
from imagen.data.loader import DataConfig
from imagen.errors import UserError, suggest
from imagen.jsonconfig import from_json, to_json
from imagen.models.text import TextConfig
from imagen.train.config import TrainConfig
from imagen.train.optim import OptimConfig


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """A preset, resolved: which stage is trained, on what, and how."""

    name: str
    stage: StageConfig
    text: TextConfig | None = field(default_factory=TextConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)


def override(experiment: Experiment, arguments: Sequence[str]) -> Experiment:
    """`experiment` with fields set from a command line: --train.batch_size 64 or --optim.lr=2e-4.

    Values are JSON, or plain text where that fails; `-` and `_` in names are the same.
    UserError for an unknown field (with the nearest known one) or a value of the wrong type.
    """
    value = to_json(experiment)
    queue = list(arguments)
    while queue:
        name, equals, text = queue.pop(0).partition("=")
        if not name.startswith("--"):
            raise UserError(f"unexpected argument {name!r}; fields are set like --optim.lr 2e-4")
        if not equals:
            if not queue:
                raise UserError(f"{name} needs a value")
            text = queue.pop(0)
        _set(value, name[2:].replace("-", "_").split("."), _parse(text), name)
    return from_json(Experiment, value, "command line")


def _set(value: Any, path: list[str], new: Any, name: str) -> None:
    for key in path[:-1]:
        value = value[key] if isinstance(value, dict) and key in value else _unknown(name, key, value)
    if not isinstance(value, dict) or path[-1] not in value:
        _unknown(name, path[-1], value)
    value[path[-1]] = new


def _unknown(name: str, key: str, value: Any) -> NoReturn:
    known = list(value) if isinstance(value, dict) else []
    raise UserError(f"unknown field {name}{suggest(key, known)} (`imagen config PRESET` shows all fields)")


def _parse(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text
