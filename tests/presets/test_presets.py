"""Build every preset at its real size on the meta device, and check its parameter count."""

import json
from functools import cache

import pytest
import torch

from imagen.errors import UserError
from imagen.jsonconfig import from_json, to_json
from imagen.models.config import UNetConfig
from imagen.models.unet import UNet
from imagen.presets import PRESETS, preset
from imagen.presets.description import describe
from imagen.train.experiment import Experiment, check, override

PARAMETERS = {
    "emoji_64": 17_432_268,
    "emoji_mini_64": 7_690_668,
    "emoji_256": 1_393_004,
    "emoji_1024": 856_320,
    "fluent_64": 17_123_900,
    "fluent_256": 6_219_932,
    "fluent_1024": 2_107_120,
    "finetune": 17_432_268,
    "finetune_lora": 17_432_268,
    "subject": 17_432_268,
    "distill": 17_432_268,
    "cifar10": 39_445_379,
    "cifar10_small": 8_956_275,
    "debug_64": 1_196_688,
    "debug_256": 879_280,
    "debug_1024": 879_280,
    "photos_64_50m": 50_399_171,
    "photos_64_150m": 150_825_347,
    "photos_256_50m": 51_447_363,
    "photos_256_150m": 147_677_699,
    "text2im_64_397m": 396_211_491,
    "text2im_64_2b": 2_005_610_499,
    "text2im_64_deberta": 400_867_619,
    "sr_256_600m": 601_213_571,
    "sr_1024_400m": 400_106_883,
    "paper_base_64": 2_193_639_939,
    "paper_sr_256": 606_467_203,
    "paper_sr_1024": 486_036_099,
}


# Several presets have the same network, and several tests need it.
@cache
def network(config: UNetConfig) -> UNet:
    with torch.device("meta"):
        return UNet(config)


def count_parameters(experiment: Experiment) -> int:
    return sum(parameter.numel() for parameter in network(experiment.stage.unet).parameters())


@cache
def unused_parameters(config: UNetConfig) -> list[str]:
    """Return the names of the parameters that the output does not depend on, by autograd's graph."""
    unet, side = network(config), 2 * config.total_stride
    with torch.device("meta"):
        x_BCHW, label_B = torch.empty(1, 3, side, side), torch.empty(1)
        conditions = {"text": torch.empty(1, 4, config.text_width or 0)}
        if config.low_res:
            conditions |= {"low_res": x_BCHW, "low_res_noise": label_B}
        nodes = [unet(x_BCHW, label_B, **conditions).grad_fn]
    seen = {None, *nodes}
    while nodes:
        found = {node for node, _ in nodes.pop().next_functions} - seen
        seen |= found
        nodes += found
    used = {id(getattr(node, "variable", None)) for node in seen}
    return [name for name, parameter in unet.named_parameters() if id(parameter) not in used]


def test_every_preset_is_listed() -> None:
    assert PARAMETERS.keys() == PRESETS.keys()


@pytest.mark.parametrize("name", PRESETS)
class TestEveryPreset:
    def test_the_parameter_count_is_pinned(self, name: str) -> None:
        assert count_parameters(preset(name)) == PARAMETERS[name]

    def test_the_parts_match(self, name: str) -> None:
        experiment = preset(name)
        check(experiment)
        assert experiment.name == name
        assert experiment.stage.resolution % experiment.stage.unet.total_stride == 0

    def test_every_parameter_is_used(self, name: str) -> None:
        """DDP waits for the gradient of every parameter."""
        assert not unused_parameters(preset(name).stage.unet)

    def test_json_round_trip(self, name: str) -> None:
        assert from_json(Experiment, json.loads(json.dumps(to_json(preset(name)))), "test") == preset(name)


@pytest.mark.parametrize(
    ("name", "millions"),
    [
        *(("photos_64_50m", 50), ("photos_64_150m", 150), ("photos_256_50m", 51), ("photos_256_150m", 148)),
        *(("text2im_64_397m", 397), ("text2im_64_2b", 2000), ("sr_256_600m", 600), ("sr_1024_400m", 400)),
    ],
)
def test_parameter_counts_match_the_names(name: str, millions: int) -> None:
    assert count_parameters(preset(name)) == pytest.approx(millions * 1e6, rel=0.02)


def test_an_unknown_preset_suggests_the_nearest() -> None:
    with pytest.raises(UserError, match="did you mean 'emoji_64'"):
        preset("emoji64")


def test_overrides_change_fields() -> None:
    experiment = override(
        preset("emoji_64"),
        ["--optim.lr", "2e-4", "--train.batch-size=8", "--stage.sampling.guidance_interval", "[-3, 4]"],
    )
    assert (experiment.optim.lr, experiment.train.batch_size) == (2e-4, 8)
    assert experiment.stage.sampling.guidance_interval == (-3.0, 4.0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--optim.lrr", "1"], "unknown field --optim.lrr; did you mean 'lr'"),
        (["--optm.lr", "1"], "unknown field --optm.lr; did you mean 'optim'"),
        (["--optim.lr", "fast"], "optim.lr"),
        (["--optim.lr"], "needs a value"),
        (["--train.steps", "true"], "steps is true; it must be a whole number"),
        (["--train.precision", "fp8"], "train.precision"),
        (["8"], "unexpected argument '8'"),
    ],
)
def test_bad_overrides_are_rejected(arguments: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        override(preset("emoji_64"), arguments)


@pytest.mark.parametrize("name", ["debug_64", "debug_1024"])
def test_a_description_has_the_sizes_of_the_preset(name):
    experiment = preset(name)
    row = describe(experiment)
    assert (row["name"], row["resolution"], row["low_resolution"]) == (
        name,
        experiment.stage.resolution,
        experiment.stage.low_resolution,
    )
    assert row["side"] == (experiment.data.crop or experiment.stage.resolution)
    assert row["parameters"] > 500_000 and row["gflop"] > 0.1
