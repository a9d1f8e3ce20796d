"""Fine-tuning: start from a stage of a cascade, freeze parameters, add adapters."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path

from torch import nn

from imagen.errors import UserError, quoted
from imagen.files import read_json
from imagen.jsonconfig import from_json, to_json
from imagen.lora.modules import add_adapters
from imagen.models.unet import UNet
from imagen.train.checkpoint import checkpoint_paths
from imagen.train.distill import student_sampling
from imagen.train.experiment import Experiment, needs_encoder
from imagen.train.initial import (
    InitConfig,
    base_path,
    find_source,
    forget_kept,
    keep_base,
    keep_licences,
    keep_unconditional,
    keep_vocabulary,
    load_initial,
    read_initial,
)
from imagen.train.ranks import Ranks
from imagen.train.rundir import differences

# Fields that a fine-tuned stage may change: none of them changes what the weights mean.
FREE_FIELDS = (
    "stage.sampling",
    "stage.objective",
    "stage.schedule",
    "stage.low_res_schedule",
    "stage.low_res_filter",
    "stage.resolution",
    "stage.low_resolution",
    "stage.sizes",  # recorded by a run with buckets; its config.json may be the file of another run
    "stage.unet.dropout",
    "text.encoder",
    "text.revision",
    "text.max_tokens",
    "text.cleaning",
)
# Exceptions: they define the outputs and inputs of the network.
FIXED_FIELDS = ("stage.objective.prediction", "stage.schedule.kind", "stage.low_res_schedule.kind")
# Fields of the structure, which --init-partial may change.
PARTIAL_FIELDS = ("stage.unet", "text")


def start_from(experiment: Experiment, source: str, *, partial: bool = False, run: Path | None = None) -> Experiment:
    """Return `experiment` for fine-tuning the stage `source`: its structure, schedule and text config.

    Optimizer, batch, steps and all other training settings remain. Captions are encoded on the fly where stored
    embeddings cannot have the stage's text config. `train.schedule`, noise levels of the preset's own stage, is dropped
    for a stage with another kind of schedule. In distillation the stage's sampling defaults become the teacher's, and
    the preset's `stage.sampling` gives the student's steps.

    run: a run that began from `source` earlier continues from its config if the source is gone or has other weights
    now: its weights are those of its checkpoints.
    Raises UserError if there is no such stage.
    """
    earlier = None if run is None else _begun(run, source)
    try:
        found = find_source(source)
    except UserError:
        if earlier is None or earlier.init is None:
            raise
        found = None
    recorded = None if earlier is None else earlier.init
    if earlier is not None and recorded is not None and (found is None or found.record.sha256 != recorded.sha256):
        return _with_stage(experiment, earlier, recorded)
    assert found is not None
    stage, record = found.record.config, found.manifest.text
    text = None if stage.unet.text_width is None or record is None else record.config
    origin = found.record.info.get("converted_from")
    init = InitConfig(
        source=source,
        resolution=stage.resolution,
        sha256=found.record.sha256,
        partial=partial,
        converted_from=origin if isinstance(origin, str) else None,
    )
    distill = experiment.distill
    if distill.teacher_steps:
        distill = replace(distill, teacher=stage.sampling)
        stage = replace(stage, sampling=student_sampling(stage.sampling, experiment.stage.sampling))
    return _with_stage(experiment, replace(experiment, stage=stage, text=text, distill=distill), init)


def _with_stage(experiment: Experiment, other: Experiment, init: InitConfig) -> Experiment:
    data, train, text = experiment.data, experiment.train, other.text
    if text is None or needs_encoder(text):
        data = replace(data, on_the_fly=text is not None)
    if experiment.stage.schedule.kind != other.stage.schedule.kind:
        train = replace(train, schedule=None)
    distill = replace(experiment.distill, teacher=other.distill.teacher)
    return replace(experiment, stage=other.stage, text=text, data=data, train=train, init=init, distill=distill)


def _begun(run: Path, source: str) -> Experiment | None:
    """Return the experiment of a run that began from `source` and has checkpoints; else None."""
    path = run / "config.json"
    if not path.is_file() or not checkpoint_paths(run / "checkpoints"):
        return None
    experiment = from_json(Experiment, read_json(path), str(path))
    return experiment if experiment.init is not None and experiment.init.source == source else None


def check_changes(started: Experiment, experiment: Experiment) -> list[str]:
    """Check fields that were set after `start_from`; return a line about each change of the text or the objective.

    Raises UserError, naming the field, for a change with which the weights cannot be used.
    """
    init = experiment.init
    assert init is not None
    notes = []
    pairs = ("stage", started.stage, experiment.stage), ("text", started.text, experiment.text)
    for section, before, now in pairs:
        for field, old, new in differences(to_json(before), to_json(now), section):
            if _within(field, FIXED_FIELDS) or not (
                _within(field, FREE_FIELDS) or (init.partial and _within(field, PARTIAL_FIELDS))
            ):
                helps = " or load what fits with --init-partial" if _within(field, PARTIAL_FIELDS) else ""
                raise UserError(
                    f"{field} is {quoted(new)}, but the weights of {init.source} are for {quoted(old)}: "
                    f"leave it out{helps}"
                )
            if not field.startswith("stage.sampling"):
                notes.append(f"--init {init.source}: {field} = {quoted(new)}; its weights are for {quoted(old)}")
    return notes


def _within(field: str, names: Sequence[str]) -> bool:
    return any(field == name or field.startswith((f"{name}.", f"{name}[")) for name in names)


def prepare(
    unet: UNet, experiment: Experiment, run: Path, ranks: Ranks, report: Callable[[str], None], *, resumes: bool
) -> None:
    """Make a new U-Net what training starts from, in place: initial weights, frozen parameters, adapters.

    resumes: whether a checkpoint is loaded next. It contains all weights, except the frozen ones beneath adapters.
    """
    init, adapts = experiment.init, experiment.lora.rank > 0
    if not resumes:
        ranks.on_first(lambda: forget_kept(run))
    if init is not None and (adapts or not resumes):
        if not resumes:
            ranks.on_first(lambda: keep_licences(run, init))
            ranks.on_first(lambda: keep_unconditional(run, init, experiment.text))
            ranks.on_first(lambda: keep_vocabulary(run, init))
        if adapts or experiment.distill.teacher_steps:
            ranks.on_first(lambda: keep_base(run, init))
        tensors = read_initial(init, base_path(run, init) if adapts else None)
        load_initial(unet, tensors, init, report)
    adapt(unet, experiment)


def adapt(unet: UNet, experiment: Experiment) -> None:
    """Freeze parameters and add adapters to a U-Net, in place, without loading weights.

    Raises UserError for a pattern that matches nothing.
    """
    config = experiment.train
    if experiment.lora.rank:
        add_adapters(unet, experiment.lora)
    if config.freeze or config.trainable:
        freeze(unet, config.freeze, config.trainable)


def freeze(unet: nn.Module, frozen: Sequence[str], trainable: Sequence[str]) -> None:
    """Freeze parameters by fnmatch patterns of their names, in place.

    trainable: if given, only matching parameters are trained. frozen: matching parameters are not trained.
    Raises UserError for a pattern that matches nothing, and if nothing is left to train.
    """
    parameters = dict(unet.named_parameters())
    chosen = set(_matching(parameters, trainable, "train.trainable")) if trainable else set(parameters)
    chosen -= set(_matching(parameters, frozen, "train.freeze"))
    if not chosen:
        raise UserError("train.freeze and train.trainable leave no parameter to train")
    for name, parameter in parameters.items():
        parameter.requires_grad_(name in chosen)


def _matching(names: dict[str, nn.Parameter], patterns: Sequence[str], field: str) -> Iterator[str]:
    for pattern in patterns:
        found = [name for name in names if fnmatchcase(name, pattern)]
        if not found:
            raise UserError(
                f"{field}: no parameter matches {pattern!r}; names are like {', '.join(list(names)[:2])}, "
                f"{list(names)[len(names) // 2]}"
            )
        yield from found
