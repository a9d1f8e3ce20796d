"""The run folder: its config and its metrics file."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from imagen.errors import UserError
from imagen.files import read_json, replacing, write_json
from imagen.text.config import absolute
from imagen.train.checkpoint import checkpoint_paths

# Fields that may differ when a run resumes. They change what a step computes by rounding at most, except `steps`: under
# a cosine schedule it determines how fast the learning rate falls. Dropout and `shuffle_captions` are drawn per
# micro-batch, so with them another division of the batch draws others.
MUTABLE_FIELDS = (
    "data.cache",
    "data.cache_gb",
    "data.max_bad",
    "data.on_the_fly",
    "data.workers",
    "init.source",
    "parallel",
    "stage.sampling",
    "train.checkpoint_every",
    "train.ema_snapshot_every",
    "train.evaluate_every",
    "train.evaluate_images",
    "train.evaluate_metrics",
    "train.gap_every",
    "train.keep_checkpoints",
    "train.keep_every",
    "train.log_every",
    "train.loggers",
    "train.max_nonfinite",
    "train.micro_batch",
    "train.peak_tflops",
    "train.sample_every",
    "train.steps",
)
# Fields that may differ but are reported: the learning rate is often lowered late in a run.
REPORTED_FIELDS = ("optim.lr", "optim.muon_lr", "optim.schedule")


def open_run(run: Path, config: dict[str, Any], report: Callable[[str], None] = print) -> dict[str, Any]:
    """Write RUN/config.json and return its content; if there are checkpoints, first compare it with the old config.

    Raises UserError naming the first field that differs and is not mutable. A field that is missing in the old config,
    because the run was started with an earlier version, is accepted and reported.
    """
    path = run / "config.json"
    config = json.loads(json.dumps(config, allow_nan=False))  # tuples become lists, as in the file
    if path.exists() and checkpoint_paths(run / "checkpoints"):
        # A student is trained for the steps of its sampling settings; elsewhere these are defaults.
        distils = (config.get("distill") or {}).get("teacher_steps")
        mutable = [name for name in MUTABLE_FIELDS if not (distils and name == "stage.sampling")]
        for field, before, now in differences(read_json(path), config):
            if any(field == name or field.startswith(f"{name}.") for name in mutable):
                continue
            if field == "text.encoder" and isinstance(before, str) and absolute(before) == now:
                continue  # earlier versions recorded a local folder as it was given
            if field in REPORTED_FIELDS:
                report(f"{run}: {field} changes from {_short(before)} to {_short(now)}")
                continue
            if before is MISSING:
                report(f"{path} was written before {field} existed: resuming with {field} = {_short(now)}")
                continue
            raise UserError(
                f"{run} was started with {field} = {_short(before)}, not {_short(now)}; "
                "use the old value, or choose another folder for a new run"
            )
    write_json(path, config)
    return config


class _Missing:
    def __repr__(self) -> str:
        return "nothing"


MISSING = _Missing()


def differences(before: Any, now: Any, where: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Yield (field, value before, value now) of each field that differs, such as `stage.unet.levels[1].blocks`."""
    if isinstance(before, dict) and isinstance(now, dict):
        for key in sorted(before.keys() | now.keys()):
            inner = f"{where}.{key}" if where else key
            yield from differences(before.get(key, MISSING), now.get(key, MISSING), inner)
    elif isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        for index, pair in enumerate(zip(before, now, strict=True)):
            yield from differences(*pair, f"{where}[{index}]")
    elif before != now:
        yield where, before, now


def _short(value: Any) -> str:
    text = repr(value) if value is MISSING else json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def truncate_metrics(path: Path, step: int) -> None:
    """Remove rows after `step`, and a truncated last row: a run that resumes from `step` writes them again."""
    if not path.exists():
        return
    with replacing(path) as temporary, open(path) as old, open(temporary, "w") as new:
        for line in old:
            if not line.endswith("\n"):
                break
            try:
                if json.loads(line)["step"] > step:
                    break
            except (ValueError, KeyError, TypeError):
                break  # a damaged row: the rows after it are newer
            new.write(line)
