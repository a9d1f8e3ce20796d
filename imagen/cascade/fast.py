"""Sample a cascade in few steps: each stage may have settings for it, and an adapter that was distilled for them."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from imagen.cascade.storage import (
    FastRecord,
    StageRecord,
    check_file,
    read_manifest,
    resolve_folder,
    store_tensors,
    write_manifest,
)
from imagen.errors import UserError
from imagen.files import read_json
from imagen.lora import fit, read_adapter
from imagen.lora.write import adapter_tensors
from imagen.models.unet import UNet
from imagen.stage.config import SamplingConfig, StageConfig
from imagen.stage.sampling import FAST, Stage

FastParts = dict[int, tuple[SamplingConfig, Mapping[str, Tensor]]]


def fast_configs(stages: Sequence[Stage]) -> tuple[list[StageConfig], dict[str, float]]:
    """Return the stages' configs with their fast settings as defaults, and the weights of the adapters for them.

    A stage without fast settings keeps its own. Raises UserError if no stage has any.
    """
    if all(stage.fast is None for stage in stages):
        used = ", ".join(str(stage.config.resolution) for stage in stages)
        raise UserError(
            f"stages {used} of this cascade have no fast settings: train `imagen train distill --init CASCADE#STAGE`, "
            "then `imagen assemble CASCADE --fast RUN --out FAST`; or choose fewer --steps"
        )
    configs = [stage.config if stage.fast is None else replace(stage.config, sampling=stage.fast) for stage in stages]
    return configs, ({FAST: 1.0} if any(FAST in stage.adapters for stage in stages) else {})


def fast_parts(stages: Sequence[Stage]) -> FastParts:
    """Return the fast settings and adapters of the stages that have them, as `write_cascade` takes them."""
    return {
        stage.config.resolution: (
            stage.fast,
            adapter_tensors(stage.adapters[FAST].modules) if FAST in stage.adapters else {},
        )
        for stage in stages
        if stage.fast is not None
    }


def load_fast(stage: Stage, folder: Path, record: FastRecord | None) -> None:
    """Add the fast settings and adapter in `cascade.json` to a stage. Raises UserError for a damaged file."""
    if record is None:
        return
    stage.fast = record.sampling
    if record.lora is not None and record.sha256 is not None:
        stage.adapters[FAST] = fit(read_adapter(check_file(folder, record.lora, record.sha256)), stage.unet)


def check_fast(cascades: Sequence[str | Path], runs: Sequence[Path], steps: Mapping[int, int]) -> None:
    """Raise the errors that `add_fast` would raise for the cascade assembled from `cascades`; write nothing."""
    found = [record for path in cascades for record in read_manifest(resolve_folder(path)).stages]
    records = {record.config.resolution: record for record in found}
    for run in runs:
        _distilled(run, records)
    for resolution, count in steps.items():
        _in_steps(records, resolution, count)


def add_fast(path: str | Path, runs: Sequence[Path], steps: Mapping[int, int]) -> None:
    """Add fast settings to the cascade folder `path`, atomically.

    runs: runs of `imagen train distill` with adapters; each gives its stage the sampling settings and the adapter.
    steps: sampler steps of other stages, by resolution; their other settings are the stage's own.
    Raises UserError if a run has no adapter, or was distilled from other weights, and for an unknown stage.
    """
    folder = resolve_folder(path)
    manifest = read_manifest(folder)
    records = {record.config.resolution: record for record in manifest.stages}
    for run in runs:
        config, tensors = _distilled(run, records)
        resolution = config.resolution
        name, sha256 = store_tensors(folder, f"fast-{resolution}", tensors)
        fast = FastRecord(sampling=config.sampling, lora=name, sha256=sha256)
        records[resolution] = replace(records[resolution], fast=fast)
    for resolution, count in steps.items():
        fast = _in_steps(records, resolution, count)
        records[resolution] = replace(records[resolution], fast=fast)
    write_manifest(folder, replace(manifest, stages=tuple(records.values())))


def _in_steps(records: Mapping[int, StageRecord], resolution: int, count: int) -> FastRecord:
    """Return the fast settings of a stage with another number of steps."""
    if resolution not in records:
        raise UserError(f"the cascade has no stage {resolution}, only {', '.join(map(str, records))}")
    record = records[resolution]
    fast = record.fast or FastRecord(sampling=record.config.sampling)
    fast = replace(fast, sampling=replace(fast.sampling, steps=count))
    fast.sampling.check(f"stage {resolution}")
    record.config.schedule.check_steps(f"stage {resolution}", count)
    return fast


def _distilled(run: Path, records: Mapping[int, StageRecord]) -> tuple[StageConfig, dict[str, Tensor]]:
    """Return the stage and the adapter of a run of distillation from the weights of one of the `records`."""
    file = run / "lora.safetensors"
    if not file.is_file():
        raise UserError(f"{run} has no lora.safetensors: fast settings need a run of adapters (lora.rank above 0)")
    config = read_json(run / "config.json")
    if not isinstance(config, dict) or not (config.get("distill") or {}).get("teacher_steps"):
        raise UserError(f"{run} is not a run of `imagen train distill`: its adapter is not for few steps")
    (made,) = read_manifest(resolve_folder(run)).stages
    resolution, init = made.config.resolution, made.info.get("init")
    if resolution not in records:
        raise UserError(f"{run} is of stage {resolution}; the cascade has {', '.join(map(str, records))}")
    if not isinstance(init, dict) or init.get("sha256") != records[resolution].sha256:
        raise UserError(f"{run} was not distilled from the weights of the cascade's stage {resolution}")
    with torch.device("meta"):
        unet = UNet(records[resolution].config.unet)
    return made.config, adapter_tensors(fit(read_adapter(file), unet).modules)
