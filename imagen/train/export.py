"""Export a stage's EMA weights as a one-stage cascade, during training and afterwards."""

from pathlib import Path
from typing import Any

from torch import Tensor

from imagen.cascade import export_stage
from imagen.cascade.storage import read_manifest, read_unconditional, resolve_folder
from imagen.errors import UserError
from imagen.train import checkpoint, posthoc
from imagen.train.callbacks import Callback
from imagen.train.checkpoint import checkpoint_paths
from imagen.train.setup import TrainingRun


class StageExport(Callback):
    """Writes RUN/export, a one-stage cascade with the EMA weights, with each checkpoint."""

    def on_checkpoint(self, run: TrainingRun, step: int) -> None:
        weights, experiment = run.checkpointer.export(), run.experiment
        run.ranks.on_first(
            lambda: export_stage(
                run.folder / "export",
                stage=experiment.stage,
                text=experiment.text,
                weights=weights,
                unconditional=run.data.unconditional,
                info={"preset": experiment.name, "step": step, "images": run.images},
            )
        )


def export_run(
    run: str | Path,
    out: str | Path,
    *,
    sigma_rel: float | None = None,
    decay: float | None = None,
    step: int | None = None,
) -> str:
    """Write the EMA of the run folder `run` as a one-stage cascade to `out`, in one process; return a description.

    Exports the EMA of a checkpoint by default. `decay` selects the snapshot of an EMA instead, and `sigma_rel` an EMA
    that is reconstructed from snapshots (imagen.train.posthoc).

    step: step of the checkpoint or snapshot; default: the last one.

    Raises UserError if the run has no export yet, has nothing stored for that step, or cannot be read, and if `out` is
    a run or contains a cascade with other stages.
    """
    if sigma_rel is not None and decay is not None:
        raise ValueError("give only one of sigma_rel and decay")
    folder, averages = resolve_folder(run), Path(run) / "averages"
    manifest = read_manifest(folder)
    if (Path(out) / "config.json").exists():
        raise UserError(f"{out} is a training run; choose another folder for the cascade")
    origin: dict[str, Any] = {}
    if sigma_rel is not None:
        weights, step, distance = posthoc.reconstruct(averages, sigma_rel, step)
        origin = {"ema_sigma_rel": sigma_rel, "ema_distance": round(distance, 4)}
        description = f"the EMA with sigma_rel {sigma_rel:g} (reconstruction error {distance:.1%})"
    elif decay is not None:
        weights, step = posthoc.tracked(averages, decay, step)
        origin, description = {"ema_decay": decay}, f"the EMA with decay {decay:g}"
    else:
        weights, step = _checkpoint_weights(Path(run) / "checkpoints", step)
        description = "the EMA"
    stage = manifest.stages[0]
    info = {name: value for name, value in stage.info.items() if name != "images"}
    export_stage(
        out,
        stage=stage.config,
        text=manifest.text.config if manifest.text else None,
        weights=weights,
        unconditional=read_unconditional(folder, manifest.text) if manifest.text else None,
        info={**info, "step": step, **origin},
    )
    return f"{out}: {description} at step {step}"


def _checkpoint_weights(folder: Path, step: int | None) -> tuple[dict[str, Tensor], int]:
    """Return the EMA weights in the checkpoint of `step` (default: the last one), and its step."""
    paths = {int(path.name.removeprefix("step-")): path for path in checkpoint_paths(folder)}
    if not paths:
        raise UserError(f"{folder} contains no checkpoints")
    step = max(paths) if step is None else step
    if step not in paths:
        raise UserError(f"{folder} has no checkpoint of step {step}, only of {', '.join(map(str, paths))}")
    try:
        # An EMA contains only parameters. Buffers, if there are any, come from the model.
        return checkpoint.read(paths[step], "model") | checkpoint.read(paths[step], "ema"), step
    except ValueError as error:
        raise UserError(f"{paths[step]} is damaged ({error}); choose another --step") from None
