"""Test conversion between dataclasses and JSON, and overrides of fields."""

import json
from dataclasses import dataclass, field
from typing import Any, Literal

import pytest

from imagen.errors import UserError, check_number
from imagen.jsonconfig import from_json, to_json
from imagen.presets import preset
from imagen.train.experiment import Experiment, override


@dataclass(frozen=True, kw_only=True)
class Part:
    kind: Literal["one", "two"]
    size: int = 1

    def __post_init__(self):
        check_number("size", self.size, above=0)


@dataclass(frozen=True, kw_only=True)
class Whole:
    name: str
    rate: float = 0.5
    flag: bool = False
    pair: tuple[float, float] = (0.0, 1.0)
    parts: tuple[Part, ...] = ()
    maybe: Part | None = None
    limit: int | None = None
    info: dict[str, Any] = field(default_factory=dict)


def test_round_trip():
    whole = Whole(
        name="x", parts=(Part(kind="one"), Part(kind="two", size=3)), maybe=Part(kind="one"), info={"a": [1, None]}
    )
    value = json.loads(json.dumps(to_json(whole), allow_nan=False))
    assert from_json(Whole, value, "f") == whole
    assert from_json(Whole, {"name": "x", "rate": 1, "pair": [0, 1]}, "f") == Whole(name="x", rate=1.0)
    assert type(from_json(Whole, {"name": "x", "rate": 1}, "f").rate) is float


@pytest.mark.parametrize(
    "change, message",
    [
        ({"nam": 1}, "unknown field 'nam'; did you mean 'name'"),
        ({"parts": [{"knd": 1}]}, r"unknown field 'parts\[0\].knd'; did you mean 'kind'"),
        ({"parts": [{"size": 2}]}, r"field 'parts\[0\].kind' is missing"),
        ({"parts": [{"kind": "tow"}]}, r"parts\[0\].kind is 'tow'; it must be one of one, two; did you mean 'two'"),
        ({"parts": [{"kind": "one"}, {"kind": "two", "size": 0}]}, r"parts\[1\]: size is 0; it must be above 0"),
        ({"parts": {"kind": "one"}}, "parts is .*; it must be a list"),
        ({"maybe": 3}, r"maybe is 3; it must be an object \(Part\)"),
        ({"name": None}, "name is null; it must be text"),
        ({"rate": "fast"}, "rate is 'fast'; it must be a finite number"),
        ({"rate": float("nan")}, "rate is NaN; it must be a finite number"),
        ({"rate": float("inf")}, "rate is Infinity; it must be a finite number"),
        ({"rate": True}, "rate is true; it must be a finite number"),
        ({"rate": 10**400}, "rate is .*; it must be a finite number"),
        ({"flag": 1}, "flag is 1; it must be true or false"),
        ({"limit": 1.5}, "limit is 1.5; it must be a whole number"),
        ({"limit": True}, "limit is true; it must be a whole number"),
        ({"pair": [1]}, r"pair is \[1\]; it must be a list of 2"),
        ({"pair": [1, "x"]}, r"pair\[1\] is 'x'; it must be a finite number"),
        ({"info": []}, r"info is \[\]; it must be an object"),
    ],
)
def test_invalid_values_are_named(change, message):
    with pytest.raises(UserError, match=f"^here: {message}") as caught:
        from_json(Whole, {"name": "x", **change}, "here")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", [None, [], 3, "x"])
def test_a_value_that_is_no_object_is_rejected(value):
    with pytest.raises(UserError, match=r"^here: it must be an object \(Whole\)"):
        from_json(Whole, value, "here")
    with pytest.raises(UserError, match=r"^here: field 'name' is missing"):
        from_json(Whole, {}, "here")


def test_number_checks():
    check_number("x", 0, least=0, most=0)
    check_number("x", -5)
    for bounds, value, message in (
        ({"least": 1}, 0, "x is 0; it must be at least 1"),
        ({"above": 0}, 0.0, "x is 0; it must be above 0"),
        ({"least": 0, "below": 1}, 1, "x is 1; it must be at least 0 and below 1"),
        ({"most": 2}, 2.5, "x is 2.5; it must be at most 2"),
        ({}, float("nan"), "x is nan; it must be a finite number"),
        ({"least": 0}, float("nan"), "x is nan; it must be at least 0"),
        ({"least": 0}, float("inf"), "x is inf; it must be at least 0"),
        ({"least": 1}, 10**400, r"x is about 10\^400; it must be at least 1 and below 2\^63"),
        ({"least": 1}, -(10**5000), r"x is about -10\^5000; it must be at least 1 and below 2\^63"),
        ({"most": 10**6}, 2_500_000, "x is 2,500,000; it must be at most 1,000,000"),
    ):
        with pytest.raises(UserError, match=f"^{message}$"):
            check_number("x", value, **bounds)


def test_overrides():
    plain = preset("debug_64")
    changed = override(
        plain,
        [
            *("--train.batch-size", "16", "--train.steps", "1e3", "--optim.lr=2", "--optim.betas", "[0, 0.5]"),
            *("--text.encoder", "123", "--stage.unet.levels.1.channels=128", "--data.crop", "32"),
            *("--data.flip", "True", "--train.gap_every", "0", "--stage.sampling.guidance", "-1e-1"),
        ],
    )
    assert (changed.train.batch_size, changed.train.steps) == (16, 1000) and type(changed.train.steps) is int
    assert changed.optim.lr == 2.0 and type(changed.optim.lr) is float and changed.optim.betas == (0.0, 0.5)
    assert changed.text is not None and changed.text.encoder == "123"
    assert [level.channels for level in changed.stage.unet.levels] == [32, 128]
    assert (changed.data.crop, changed.data.flip, changed.stage.sampling.guidance) == (32, True, -0.1)
    assert override(changed, ["--data.crop", "None", "--text", "null"]).text is None
    assert override(plain, []) == plain


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--train.stps", "5"], "unknown field --train.stps; did you mean 'steps'"),
        (["--trian.steps", "5"], "unknown field --trian.steps; did you mean 'train'"),
        (["--stage.unet.levels.2.channels", "5"], r"unknown field --stage.unet.levels.2.channels"),
        (["--train.steps.x", "5"], "unknown field --train.steps.x"),
        (["--train.steps"], "--train.steps needs a value"),
        (["--train.steps", "many"], "train.steps is 'many'; it must be a whole number"),
        (["--optim.lr", "NaN"], "optim.lr is NaN"),
        (["--optim.betas", "0.9", "0.99"], "unexpected argument '0.99'"),
        (["steps"], "unexpected argument 'steps'"),
        (["--stage.schedule.kind", "cosin"], "must be one of cosine, linear, discrete_cosine; did you mean 'cosine'"),
    ],
)
def test_invalid_overrides_are_rejected(arguments, message):
    with pytest.raises(UserError, match=message):
        override(preset("debug_64"), arguments)


def test_an_experiment_is_strict_json():
    value = to_json(preset("debug_256"))
    assert from_json(Experiment, json.loads(json.dumps(value, allow_nan=False)), "x") == preset("debug_256")
