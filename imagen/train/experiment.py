"""The config of a training run, and overrides from the command line."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from imagen.data.loading.config import DataConfig
from imagen.errors import UserError, suggest
from imagen.files import parse_json
from imagen.jsonconfig import from_json, to_json
from imagen.lora.config import LoraConfig
from imagen.stage.config import StageConfig
from imagen.text.config import TextConfig
from imagen.train.config import OptimConfig, ParallelConfig, TrainConfig, micro_batches
from imagen.train.distill import DistillConfig
from imagen.train.initial import InitConfig
from imagen.train.shapes import check_buckets


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """A resolved preset: the stage, its text encoder and data, and the settings of its training."""

    name: str  # of the preset, or one of your own; a run and its exports record it
    stage: StageConfig  # the model: sizes, network, noise, loss, and defaults of sampling
    text: TextConfig | None = field(default_factory=TextConfig)  # the text encoder; None: a model without text
    data: DataConfig = field(default_factory=DataConfig)  # how images are loaded
    optim: OptimConfig = field(default_factory=OptimConfig)  # optimizer and learning rate
    train: TrainConfig = field(default_factory=TrainConfig)  # length, batches, EMA, and what is written how often
    parallel: ParallelConfig = field(default_factory=ParallelConfig)  # several devices, and memory; changes no result
    init: InitConfig | None = None  # weights to start from; None: random ones
    lora: LoraConfig = field(default_factory=LoraConfig)  # adapters that are trained in place of the weights
    distill: DistillConfig = field(default_factory=DistillConfig)  # training for few sampler steps, without guidance


def check(experiment: Experiment, world_size: int | None = 1) -> None:
    """Raise UserError, naming the field, for a value out of range or fields that do not match each other.

    world_size: processes that train together, among which the batch is divided. None: it is not known yet.
    """
    stage, text, config, unet = experiment.stage, experiment.text, experiment.train, experiment.stage.unet
    for part in (text, experiment.data, experiment.optim, config, experiment.lora):
        if part is not None:
            part.check()
    stage.check("stage")
    if text is None and experiment.data.on_the_fly:
        raise UserError("data.on_the_fly is true, but text is null: there is no text to encode")
    if text is not None and needs_encoder(text) and not experiment.data.on_the_fly:
        raise UserError(
            f"text.cleaning is {text.cleaning!r} and text.padding {text.padding!r}; stored embeddings are of uncleaned "
            "captions, without padding: set data.on_the_fly to true"
        )
    width = None if text is None else text.width
    if unet.text_width != width:
        needed = "text is null, so it must be null too" if text is None else f"text.width is {width}: make them equal"
        raise UserError(f"stage.unet.text_width is {unet.text_width}, but {needed}")
    if unet.image_channels not in (1, 3):
        raise UserError(
            f"stage.unet.image_channels is {unet.image_channels}; images are read as RGB (3) or grayscale (1)"
        )
    if (crop := experiment.data.crop) is not None:
        scale = 1 if stage.low_resolution is None else stage.resolution // stage.low_resolution
        unit = math.lcm(unet.total_stride, scale)
        if crop > stage.resolution or crop % unit:
            raise UserError(f"data.crop is {crop}; it must be a multiple of {unit} and at most {stage.resolution}")
        if unet.coordinates and crop < stage.resolution:
            raise UserError(
                f"data.crop is {crop}, but stage.unet.coordinates is true: a crop does not show where in the image it "
                "is; set one of them to its default"
            )
    if experiment.lora.rank and experiment.init is None:
        raise UserError(f"lora.rank is {experiment.lora.rank}, but there are no weights to adapt: set --init CASCADE")
    if experiment.lora.rank and (config.freeze or config.trainable):
        raise UserError("train.freeze and train.trainable choose weights, and lora.rank freezes all: set lora.targets")
    if experiment.lora.rank and experiment.init is not None and experiment.init.partial:
        raise UserError("lora.rank freezes all weights, so none may be new: leave out --init-partial")
    experiment.distill.check(stage, experiment.init)
    check_buckets(stage, experiment.data, config, world_size)
    experiment.parallel.check(len(unet.levels), world_size or 1)
    micro = 2 if world_size is None else micro_batches(config, world_size)[0]
    if config.shuffle_captions and (text is None or micro < 2):
        raise UserError("train.shuffle_captions needs text and micro-batches of at least two samples")


def needs_encoder(text: TextConfig) -> bool:
    """Return whether captions must be encoded on the fly: stored embeddings are of unmodified captions, unpadded."""
    return text.cleaning != "none" or text.padding != "trim"


def override(experiment: Experiment, arguments: Sequence[str]) -> Experiment:
    """Return `experiment` with fields set from a command line: --train.batch_size 64 or --optim.lr=2e-4.

    Values are JSON, or plain text if they are not valid JSON. List elements are addressed by index:
    --stage.unet.levels.0.channels 64. `-` and `_` in names are equivalent. Raises UserError for an unknown field,
    suggesting the nearest known one, and for a value of the wrong type.
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
    """Set the field `name` (`--a.b`) in nested dicts and lists."""
    value: Any = config
    *path, last = name[2:].replace("-", "_").split(".")
    for key in path:
        value = value[_key(value, key, name)]
    last = _key(value, last, name)
    value[last] = text if isinstance(value[last], str) else _parse(text)  # text.encoder "123" remains a string


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
        value = parse_json(text, finite=False)  # the field's own check reports NaN and infinity
    except ValueError:
        return text
    return int(value) if isinstance(value, float) and value.is_integer() else value  # 1e4 is valid for an integer field
