"""Check the table of bounds: it covers every number of each config, and bounds are inclusive."""

import dataclasses
import math
import typing
from types import SimpleNamespace

import pytest

from imagen import limits
from imagen.cascade.provenance import Conditions, Provenance, VariationProvenance
from imagen.data.loading.config import DataConfig
from imagen.diffusion.objective import ObjectiveConfig
from imagen.diffusion.schedule import ScheduleConfig
from imagen.errors import UserError
from imagen.models.config import Level, UNetConfig
from imagen.presets import PRESETS, preset
from imagen.stage.config import SamplingConfig, StageConfig
from imagen.text.config import TextConfig
from imagen.train.config import OptimConfig, TrainConfig

TABLES = {
    Level: limits.LEVEL,
    UNetConfig: limits.UNET,
    StageConfig: limits.STAGE,
    ScheduleConfig: limits.SCHEDULE,
    ObjectiveConfig: limits.OBJECTIVE,
    SamplingConfig: limits.SAMPLING,
    TextConfig: limits.TEXT,
    DataConfig: limits.DATA,
    TrainConfig: limits.TRAIN,
    OptimConfig: limits.OPTIM,
    Provenance: limits.MADE,
    Conditions: limits.CONDITIONS,
    VariationProvenance: limits.VARIATION,
}
# Numbers that are checked together with others, where they are used.
ELSEWHERE = {
    SamplingConfig: {"guidance_rescale", "percentile", "eta", "damping", "gamma", "sampler_options", "low_res_noise"},
    ScheduleConfig: {"logsnr_min", "logsnr_max"},
    Conditions: {"place"},
}


def numeric_fields(cls) -> set[str]:
    """Return the numeric fields of a dataclass."""
    kinds = typing.get_type_hints(cls)
    return {name for name, kind in kinds.items() if {kind, *typing.get_args(kind)} & {int, float} and not is_list(kind)}


def is_list(kind) -> bool:
    return typing.get_origin(kind) is tuple or any(typing.get_origin(each) is tuple for each in typing.get_args(kind))


@pytest.mark.parametrize("cls", TABLES, ids=lambda cls: cls.__name__)
def test_every_number_of_a_config_has_bounds(cls):
    fields = {field.name for field in dataclasses.fields(cls)}
    assert TABLES[cls].keys() <= fields
    assert numeric_fields(cls) <= TABLES[cls].keys() | ELSEWHERE.get(cls, set())


@pytest.mark.parametrize("table", [*TABLES.values(), limits.ENCODER])
def test_every_range_is_bounded_and_not_empty(table):
    for name, bounds in table.items():
        least = bounds.get("least", bounds.get("above", -math.inf))
        assert least < bounds.get("most", bounds.get("below", math.inf)) < math.inf, name


@pytest.mark.parametrize("cls", TABLES, ids=lambda cls: cls.__name__)
def test_a_value_at_a_bound_passes_and_a_value_beyond_fails(cls):
    for name, bounds in TABLES[cls].items():
        table = {name: bounds}
        for word, way in (("least", -1), ("most", 1)):
            if word in bounds:
                limits.check(SimpleNamespace(**{name: bounds[word]}), table)
                with pytest.raises(UserError, match=rf"^here: {name} is .*; it must be .*at {word} "):
                    limits.check(
                        SimpleNamespace(**{name: bounds[word] + way * (abs(bounds[word]) + 1)}), table, "here: "
                    )
        for word in ("above", "below"):
            if word in bounds:
                with pytest.raises(UserError, match=f"{name} is .*; it must be .*{word} "):
                    limits.check(SimpleNamespace(**{name: bounds[word]}), table)
        for value in (math.nan, math.inf, -math.inf, 10**400, -(10**400)):
            with pytest.raises(UserError, match=f"^{name} is "):
                limits.check(SimpleNamespace(**{name: value}), table)


def test_list_items_are_checked_and_none_is_accepted():
    table = {"betas": {"least": 0, "below": 1}, "width": limits.between(1, 8)}
    limits.check(SimpleNamespace(betas=(0.9, None, 0.99), width=None), table)
    with pytest.raises(UserError, match=r"^optim\.betas\[1\] is 1; it must be at least 0 and below 1$"):
        limits.check(SimpleNamespace(betas=(0.9, 1.0), width=None), table, "optim.")


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_at_most_a_sixteenth_of_the_bounds(name):
    """The bounds leave ample room: at least 16 times the values of the largest presets."""
    experiment = preset(name)
    for config, table in (
        (experiment.stage, limits.STAGE),
        (experiment.stage.unet, limits.UNET),
        *((level, limits.LEVEL) for level in experiment.stage.unet.levels),
    ):
        limits.check(config, table)
        for field in ("channels", "time_width", "context_width", "resolution", "stem_channels"):
            value = getattr(config, field, None)
            assert value is None or 16 * value <= table[field]["most"], field


@pytest.mark.parametrize(
    "field, largest",
    [("num_layers", 64), ("num_hidden_layers", 64), ("num_heads", 128), ("d_model", 4_096), ("hidden_size", 4_096),
     ("d_ff", 65_536), ("vocab_size", 256_300), ("max_position_embeddings", 32_768)],
)  # fmt: skip
def test_encoders_sixteen_times_the_largest_known_are_accepted(field, largest):
    """T5-11b, mT5-XXL, DeBERTa-v2-xxlarge."""
    assert 16 * largest <= limits.ENCODER[field]["most"] * 1.05
