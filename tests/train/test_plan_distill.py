"""Test that a plan counts the teacher of distillation: its weights, the memory of its steps, and their FLOPs."""

import json
from dataclasses import replace
from itertools import accumulate

import pytest
import torch
from planning import experiment, real_batches
from torch.utils.flop_counter import FlopCounterMode

from imagen.lora import LoraConfig
from imagen.models.unet import UNet
from imagen.stage.config import SamplingConfig
from imagen.stage.denoiser import build_predict
from imagen.stage.distillation import Distillation, divided_steps
from imagen.train.distill import DistillConfig
from imagen.train.flops import meta_unet
from imagen.train.initial import InitConfig
from imagen.train.plan.dry_run import DryRun

# 2 steps of 3 each: guided in all steps of the first, and in the start of the second.
TEACHER = SamplingConfig(sampler="heun", steps=10, guidance=2.0, guidance_interval=(-20.0, 0.0))
STUDENT = SamplingConfig(sampler="ddim", steps=2, spacing="logsnr", logsnr_range=(-6.0, 0.0), guidance=1.0)


def distilling(*fields, teacher=TEACHER):
    what = experiment("--train.batch_size", "8", *fields)
    return replace(
        what,
        stage=replace(what.stage, sampling=STUDENT),
        init=InitConfig(source="nowhere#64"),
        distill=DistillConfig(teacher_steps=3, teacher=teacher),
        lora=LoraConfig(rank=2),
    )


def weights(what):
    return list(meta_unet(what).parameters())


@pytest.mark.parametrize(
    "dtype, gpu, size",
    [
        (None, False, lambda weight: 4),
        (torch.bfloat16, False, lambda weight: 2 if weight.ndim > 1 else 4),  # autocast's, as `build_unet` stores them
        (torch.bfloat16, True, lambda weight: 2),
    ],
)
def test_the_weights_of_the_teacher(dtype, gpu, size):
    what = distilling()
    plain = replace(what, distill=DistillConfig(), init=None)
    with DryRun(what, 1, dtype=dtype, gpu=gpu) as found, DryRun(plain, 1, dtype=dtype, gpu=gpu) as without:
        pass
    assert found.held["teacher"] == sum(weight.numel() * size(weight) for weight in weights(what))
    assert {**without.held, "teacher": found.held["teacher"]} == found.held
    assert found.stored == without.stored  # checkpoints do not contain it


def test_the_flops_of_the_teacher():
    """Heun evaluates twice per step, but once in the step to clean images; guidance doubles evaluations up to 0."""
    what = distilling()
    evaluations = (3 * 2 * 2, 2 + 1 + 2 + 1)  # from -6 to 0; then (0, 7, 14, clean), which is guided at 0 only
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        meta_unet(what).cache_text(torch.empty(1, what.text.max_tokens, what.text.width), None)
    keys_and_values = counter.get_total_flops()  # once per text: for both halves of the costliest step
    with DryRun(replace(what, lora=LoraConfig(rank=1)), 2, dtype=None, gpu=False) as dry_run:
        for size in (4, 2, 1):
            found = dry_run.trace(what.parallel, size).flops
            evaluation = found["forward"] / 4 - keys_and_values
            wanted = sum(evaluations) / 2 * evaluation + sum(evaluations) / 2 / max(evaluations) * 2 * keys_and_values
            assert found["distillation"] / 4 == pytest.approx(wanted, rel=0.02)


def test_the_memory_of_its_steps_equals_that_of_a_real_step():
    """Of a batch of 8 images, 4 are in each step of the student, so a guided evaluation has 8 rows."""
    what = distilling(teacher=replace(TEACHER, sampler="dpmpp_2m"))
    with DryRun(what, 1, dtype=None, gpu=False) as dry_run:
        interval = dry_run.trace(what.parallel, 8).interval
    within = [total for total, phase in zip(interval.totals, interval.phases, strict=True) if phase == "distillation"]

    teacher = UNet(what.stage.unet).eval().requires_grad_(False).to(memory_format=torch.channels_last)
    noising = Distillation(
        what.stage,
        build_predict(teacher, None),
        what.distill.teacher,
        divided_steps(what.stage, what.distill.teacher, what.distill.teacher_steps),
        seed=0,
        batch_size=8,
        device=torch.device("cpu"),
        unconditional_LD=torch.zeros(1, what.text.width),
    )
    noising(next(real_batches(what, 1, 8)))
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profile:
        noising(next(real_batches(what, 1, 8)))
    events = sorted(profile.profiler.kineto_results.events(), key=lambda event: event.start_ns())
    real = max(accumulate(event.nbytes() for event in events if event.name() == "[memory]"))
    assert max(within) - interval.before == pytest.approx(real, rel=0.1)


def test_a_plan_of_the_preset(imagen):
    plan = ("plan", "distill", "--gpu", "l40s", "--micro-batch", 4)
    found = json.loads(imagen(*plan, "--json"))
    assert found["memory"]["at_peak"]["teacher"] == found["memory"]["held"]["teacher"]
    assert found["memory"]["grid"] > found["memory"]["held"]["teacher"]
    assert found["flop"]["distillation"] > 3 * found["flop"]["forward"]  # 3 steps of the teacher, most of them guided
    shown = imagen(*plan)
    assert "teacher" in shown
