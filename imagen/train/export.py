"""Export a stage's EMA weights as a one-stage cascade, during training and afterwards."""

from pathlib import Path
from typing import Any

from torch import Tensor

from imagen.cascade import export_stage
from imagen.cascade.storage import read_manifest, read_unconditional, resolve_folder
from imagen.errors import UserError
from imagen.files import copy_licences, read_json
from imagen.jsonconfig import from_json
from imagen.lora import read_adapter
from imagen.lora.modules import is_factor, merged
from imagen.train import checkpoint, posthoc
from imagen.train.adapters import LORA_FILE, write_lora
from imagen.train.callbacks import Callback
from imagen.train.checkpoint import checkpoint_paths
from imagen.train.experiment import Experiment
from imagen.train.initial import base_path, read_initial, read_kept_unconditional, read_kept_vocabulary
from imagen.train.setup import TrainingRun


class StageExport(Callback):
    """Writes RUN/export, a one-stage cascade with the EMA weights, with each checkpoint.

    Adapters are written to RUN/lora.safetensors, and merged into the weights of RUN/export.
    """

    def on_checkpoint(self, run: TrainingRun, step: int) -> None:
        weights, experiment = run.checkpointer.export(), run.experiment
        info = {"preset": experiment.name, "step": step, "images": run.images}
        vocabulary = run.data.vocabulary if experiment.text is not None else None
        if vocabulary is not None and experiment.init is not None:
            before = read_kept_vocabulary(run.folder)  # None if nobody knows what the initial weights were trained on
            vocabulary = None if before is None else before | vocabulary
        if vocabulary is not None:
            info["vocabulary"] = vocabulary.to_json()
        if experiment.init is not None:
            info["init"] = {"source": experiment.init.source, "sha256": experiment.init.sha256}
            if experiment.init.converted_from is not None:
                info["converted_from"] = experiment.init.converted_from

        def write() -> None:
            whole, kept = weights, read_kept_unconditional(run.folder)
            if experiment.lora.rank:
                write_lora(run.folder / LORA_FILE, weights, experiment.stage, experiment.lora)
                whole = merged(weights, experiment.lora.scale)
            export_stage(
                run.folder / "export",
                stage=experiment.stage,
                text=experiment.text,
                weights=whole,
                unconditional=run.data.unconditional if kept is None else kept,
                info=info,
            )
            copy_licences(run.folder, run.folder / "export")

        run.ranks.on_first(write)


def export_run(
    run: str | Path,
    out: str | Path,
    *,
    sigma_rel: float | None = None,
    decay: float | None = None,
    step: int | None = None,
    merge: bool = True,
) -> str:
    """Write the EMA of the run folder `run` as a one-stage cascade to `out`, in one process; return a description.

    Exports the EMA of a checkpoint by default. `decay` selects the snapshot of an EMA instead, and `sigma_rel` an EMA
    that is reconstructed from snapshots (imagen.train.posthoc). A run of adapters is exported with its adapters merged,
    or, without `merge`, as the LoRA file `out`.

    step: step of the checkpoint or snapshot; default: the last one.

    Raises UserError if the run has no export yet, has nothing stored for that step, or cannot be read, and if `out` is
    a run or contains a cascade with other stages.
    """
    if sigma_rel is not None and decay is not None:
        raise ValueError("give only one of sigma_rel and decay")
    folder, averages = resolve_folder(run), Path(run) / "averages"
    manifest = read_manifest(folder)
    experiment = _lora_experiment(Path(run))
    if not merge and (experiment is None or Path(out).suffix != ".safetensors"):
        problem = f"{run} did not train adapters" if experiment is None else f"{out} must end in .safetensors"
        raise UserError(f"{problem}: export a cascade with --merge" if experiment else problem)
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
    if experiment is not None and experiment.init is not None:
        if not merge:
            if Path(out).exists():
                read_adapter(out)  # raises UserError if it is anything but a LoRA, which may be replaced
            write_lora(Path(out), weights, stage.config, experiment.lora)
            return f"{out}: LoRA of {description} at step {step}"
        base = read_initial(experiment.init, base_path(Path(run), experiment.init))
        own = {name: value for name, value in weights.items() if is_factor(name)}
        weights = merged(_float(base) | own, experiment.lora.scale)
        description = f"{description} with its adapters merged"
    info = {name: value for name, value in stage.info.items() if name != "images"}
    export_stage(
        out,
        stage=stage.config,
        text=manifest.text.config if manifest.text else None,
        weights=weights,
        unconditional=read_unconditional(folder, manifest.text) if manifest.text else None,
        info={**info, "step": step, **origin},
    )
    copy_licences(folder, Path(out))
    return f"{out}: {description} at step {step}"


def _lora_experiment(run: Path) -> Experiment | None:
    """Return the experiment of a run of adapters; None for other runs and for exports alone."""
    path = run / "config.json"
    if not path.is_file():
        return None
    value = read_json(path)
    if not isinstance(value, dict) or not (value.get("lora") or {}).get("rank"):
        return None
    return from_json(Experiment, value, str(path))


def _float(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.float() for name, value in tensors.items()}


def _checkpoint_weights(folder: Path, step: int | None) -> tuple[dict[str, Tensor], int]:
    """Return the EMA weights in the checkpoint of `step` (default: the last one), and its step."""
    paths = {int(path.name.removeprefix("step-")): path for path in checkpoint_paths(folder)}
    if not paths:
        raise UserError(f"{folder} contains no checkpoints; train until the first one (train.checkpoint_every)")
    step = max(paths) if step is None else step
    if step not in paths:
        raise UserError(f"{folder} has no checkpoint of step {step}, only of {', '.join(map(str, paths))}")
    try:
        # An EMA contains only parameters. Buffers, if there are any, come from the model.
        return checkpoint.read(paths[step], "model") | checkpoint.read(paths[step], "ema"), step
    except ValueError as error:
        raise UserError(f"{paths[step]} is damaged ({error}); choose another --step") from None
