"""Test the loss scale of float16, and its reaction to overflows."""

import json
from contextlib import nullcontext

import pytest
import torch
from steps import build_forward_process, load_batches, randomize_zero_layers
from toy import experiment, train_quietly

from imagen.models.unet import UNet
from imagen.train.optim import build_optimizer
from imagen.train.scaling import GROWTH_STEPS, LARGEST, START, LossScale
from imagen.train.step import training_step


def network():
    torch.manual_seed(0)
    return randomize_zero_layers(UNet(experiment().stage.unet))


def stepped(shards, scale, clip_norm=1e9, break_gradient=False):
    """Run one step of the toy experiment; return its result and the weights after it."""
    what, unet = experiment(), network()
    if break_gradient:
        unet.conv_out.weight.register_hook(lambda gradient: torch.full_like(gradient, torch.inf))
    optimizer = build_optimizer(unet.named_parameters(), what.optim)
    optimizer.set_learning_rate(1e-3)
    result = training_step(
        unet,
        load_batches(shards, what, 1),
        1,
        build_forward_process(what),
        optimizer,
        clip_norm=clip_norm,
        autocast=nullcontext,
        scale=scale,
    )
    return result, unet.state_dict()


@pytest.mark.parametrize("clip_norm", [1e9, 0.01])
def test_scaled_step_equals_unscaled_step(shards, clip_norm):
    plain, weights = stepped(shards, None, clip_norm)
    scaled, others = stepped(shards, LossScale.build(torch.float16), clip_norm)
    assert scaled.grad_norm == pytest.approx(plain.grad_norm, rel=1e-4)
    for name, weight in weights.items():
        torch.testing.assert_close(others[name], weight, rtol=1e-4, atol=2e-5)


def test_an_overflow_is_skipped_and_halves_the_scale(shards):
    scale = LossScale.build(torch.float16)
    before = network().state_dict()
    result, after = stepped(shards, scale, break_gradient=True)
    assert result.overflowed and not result.applied and result.problem is None and scale.value == START / 2
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_overflow_at_the_smallest_scale_is_a_non_finite_step(shards):
    result, _ = stepped(shards, LossScale(1.0, 0, True), break_gradient=True)
    assert result.problem is not None and "gradient is not finite" in result.problem


def test_scale_grows_again_within_its_range():
    scale = LossScale.build(torch.float16)
    for _ in range(GROWTH_STEPS):
        scale.record_success()
    assert scale.value == 2 * START and scale.steps == 0
    scale = LossScale(LARGEST, GROWTH_STEPS, True)
    scale.record_success()
    assert scale.value == LARGEST


def test_other_formats_have_no_scale():
    scale = LossScale.build(torch.bfloat16)
    for _ in range(2 * GROWTH_STEPS):
        scale.record_success()
    assert scale.value == 1.0 and not scale.record_overflow()


def test_float16_trains_and_resumes_exactly(shards, tmp_path):
    what = experiment(steps=4, precision="fp16", log_every=1, checkpoint_every=2, gap_every=0)
    train_quietly(what, shards, tmp_path / "whole")
    rows = [json.loads(line) for line in (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()]
    assert all(0 < row["loss"] < 3 for row in rows)
    train_quietly(what, shards, tmp_path / "parts", minutes=1e-9)  # one step
    train_quietly(what, shards, tmp_path / "parts")
    parts = [json.loads(line) for line in (tmp_path / "parts" / "metrics.jsonl").read_text().splitlines()]
    assert [row["loss"] for row in parts] == [row["loss"] for row in rows]
