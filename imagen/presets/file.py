"""Experiments in files: a preset's name with changes, or all fields."""

from pathlib import Path
from typing import Any

from imagen.configtext import SUFFIXES, merge, read_table
from imagen.errors import UserError
from imagen.jsonconfig import from_json, to_json
from imagen.train.experiment import Experiment, check


def is_file(name: str) -> bool:
    """Whether a name is one of a config file, and not of a preset."""
    return Path(name).suffix in SUFFIXES or "/" in name


def changed_model(path: str | Path, source: str) -> dict[str, Any]:
    """Return the tables `stage`, `text` and `distill` of a file that changes the stage `source` in fine-tuning.

    Those of a file with all fields describe the stage of its own `init`; for another source, none is returned.
    """
    value = read_table(path, Experiment)
    if "preset" not in value and (value.get("init") or {}).get("source") != source:
        return {}
    return {name: value[name] for name in ("stage", "text", "distill") if name in value}


def read_experiment(path: str | Path) -> Experiment:
    """Return the experiment in a TOML, JSON or YAML file.

    Its fields are changes to the preset that its field `preset` names. Without one, all fields that have no default
    must be there. Lists, such as `stage.unet.levels`, are replaced as a whole.

    Raises UserError with the path and the field, as `from_json` and `check` do for every experiment.
    """
    from imagen.presets import preset

    value = read_table(path, Experiment)
    base = value.pop("preset", None)
    if base is None:
        if "stage" not in value:
            raise UserError(
                f'{path} has neither a preset nor a stage: begin with preset = "NAME" (`imagen presets` lists them), '
                "or with the file that `imagen config PRESET --write FILE` writes"
            )
    elif not isinstance(base, str):
        raise UserError(f"{path}: preset is {base!r}; it must be the name of a preset")
    else:
        try:
            value = merge(to_json(preset(base)), value)
        except UserError as error:
            raise UserError(f"{path}: {error}") from None
    experiment = from_json(Experiment, value, str(path))
    try:
        check(experiment, world_size=None)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    return experiment
