"""From what a training run has kept to a cascade of its stage, on one process, however many it was trained on."""

from pathlib import Path
from typing import Any

from torch import Tensor

from imagen.cascade import export_stage
from imagen.cascade.storage import read_manifest, read_unconditional, resolve_folder
from imagen.errors import UserError
from imagen.train import checkpoint, posthoc
from imagen.train.checkpoint import checkpoint_paths


def export_run(
    run: str | Path,
    out: str | Path,
    *,
    sigma_rel: float | None = None,
    decay: float | None = None,
    step: int | None = None,
) -> str:
    """Write `run`'s one-stage cascade with an average of its weights to `out`; returns what it is, in words.

    By default the average that RUN/export has, of a checkpoint; else that of `decay` as it was kept, or of `sigma_rel`,
    reconstructed (imagen.train.posthoc), of a snapshot. Of `step`, by default the last there is. Raises UserError if
    the run has exported nothing yet, has kept nothing of that step, or it cannot be read, and if `out` is a run
    or holds a cascade of other stages.
    """
    if sigma_rel is not None and decay is not None:
        raise ValueError("give one of sigma_rel and decay")
    folder, averages = resolve_folder(run), Path(run) / "averages"
    manifest = read_manifest(folder)
    if (Path(out) / "config.json").exists():
        raise UserError(f"{out} is a training run; choose another folder for the cascade")
    about: dict[str, Any] = {}
    if sigma_rel is not None:
        weights, step, distance = posthoc.reconstruct(averages, sigma_rel, step)
        about = {"ema_sigma_rel": sigma_rel, "ema_distance": round(distance, 4)}
        words = f"the average of sigma_rel {sigma_rel:g} ({distance:.1%} off)"
    elif decay is not None:
        weights, step = posthoc.tracked(averages, decay, step)
        about, words = {"ema_decay": decay}, f"the average of decay {decay:g}"
    else:
        weights, step = _of_checkpoint(Path(run) / "checkpoints", step)
        words = "the averaged weights"
    stage = manifest.stages[0]
    info = {name: value for name, value in stage.info.items() if name != "images"}
    export_stage(
        out,
        stage=stage.config,
        text=manifest.text.config if manifest.text else None,
        weights=weights,
        unconditional=read_unconditional(folder, manifest.text) if manifest.text else None,
        info={**info, "step": step, **about},
    )
    return f"{out}: {words} at step {step}"


def _of_checkpoint(folder: Path, step: int | None) -> tuple[dict[str, Tensor], int]:
    """The averaged weights in the checkpoint of `step`, or the last one, and its step."""
    paths = {int(path.name.removeprefix("step-")): path for path in checkpoint_paths(folder)}
    if not paths:
        raise UserError(f"{folder} holds no checkpoints")
    step = max(paths) if step is None else step
    if step not in paths:
        raise UserError(f"{folder} holds no checkpoint of step {step}; there are {', '.join(map(str, paths))}")
    try:
        # The model's own buffers, if it has any, are not averaged.
        return checkpoint.read(paths[step], "model") | checkpoint.read(paths[step], "ema"), step
    except ValueError as error:
        raise UserError(f"{paths[step]} is damaged ({error}); choose another --step") from None
