"""One experiment: everything that decides what a training run does."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from imagen.cascade import StageConfig
from imagen.data.loading.config import DataConfig
from imagen.errors import UserError, suggest
from imagen.files import parse_json
from imagen.jsonconfig import from_json, to_json
from imagen.text.config import TextConfig
from imagen.train.config import TrainConfig
from imagen.train.optim import OptimConfig
from imagen.train.parallel import ParallelConfig


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """A preset, resolved: which stage is trained, on what, and how."""

    name: str
    stage: StageConfig
    text: TextConfig | None = field(default_factory=TextConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)


def override(experiment: Experiment, arguments: Sequence[str]) -> Experiment:
    """`experiment` with fields set from a command line: --train.batch_size 64 or --optim.lr=2e-4.

    Values are JSON, or plain text where that fails; parts of lists go by number: --stage.unet.levels.0.channels 64.
    `-` and `_` in names are the same. UserError for an unknown field (with the nearest known one) or a value of the
    wrong type.
    """
    value = to_json(experiment)
    queue = list(arguments)
    while queue:
        name, equals, text = queue.pop(0).partition("=")
        if not name.startswith("--"):
            raise UserError(f"unexpected argument {name!r}; fields are set like --optim.lr 2e-4, lists like '[1, 2]'")
        if not equals:
            if not queue:
                raise UserError(f"{name} needs a value")
            text = queue.pop(0)
        _set(value, name, text)
    return from_json(Experiment, value, "command line")


def _set(config: dict[str, Any], name: str, text: str) -> None:
    """Set the field called `name` (`--a.b`) in nested dicts and lists."""
    value: Any = config
    *path, last = name[2:].replace("-", "_").split(".")
    for key in path:
        value = value[_key(value, key, name)]
    last = _key(value, last, name)
    value[last] = text if isinstance(value[last], str) else _parse(text)  # the encoder "123" is a name


def _key(value: Any, key: str, name: str) -> Any:
    if isinstance(value, list) and key.isdecimal() and int(key) < len(value):
        return int(key)
    if isinstance(value, dict) and key in value:
        return key
    known = list(value) if isinstance(value, dict) else map(str, range(len(value))) if isinstance(value, list) else []
    raise UserError(f"unknown field {name}{suggest(key, known)} (`imagen config PRESET` shows all fields)")


def _parse(text: str) -> Any:
    if text in ("True", "False", "None"):  # Python's spelling
        return {"True": True, "False": False, "None": None}[text]
    try:
        value = parse_json(text, finite=False)  # the field's own message names the number
    except ValueError:
        return text
    return int(value) if isinstance(value, float) and value.is_integer() else value  # 1e4 steps
