"""Test that the memory of a plan equals the allocations of real ranks."""

import json
from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest
import torch
from planning import experiment, real_batches
from ranks import run_on_ranks

from imagen.accounting.tracker import TrackedInterval
from imagen.errors import UserError
from imagen.models.unet import UNet
from imagen.presets import preset
from imagen.presets.description import describe
from imagen.stage.loss import ForwardProcess
from imagen.train.config import micro_batches
from imagen.train.ema import Ema
from imagen.train.finetune import adapt
from imagen.train.layout import named_weights, permuted_weights
from imagen.train.optim import build_optimizer
from imagen.train.parallel import build_mesh, parallelize
from imagen.train.plan.choice import candidates, checkpointings, choose, predicted_peak
from imagen.train.plan.dry_run import DryRun, TracedStep
from imagen.train.ranks import process_group
from imagen.train.step import training_step

LAYOUTS = {
    "ddp": (),
    "ddp, full": ("--parallel.checkpointing", "full", "--train.micro_batch", "4"),
    "fsdp": ("--parallel.shard", "4"),
    "fsdp, full": ("--parallel.shard", "4", "--parallel.checkpointing", "full", "--train.micro_batch", "4"),
    "hsdp": ("--parallel.shard", "2", "--train.micro_batch", "2"),
}


def own_bytes(tensors):
    """Return the total bytes of the tensors' storages on this rank."""
    parts = [tensor.to_local() if hasattr(tensor, "to_local") else tensor for tensor in tensors]
    return sum({part.untyped_storage().data_ptr(): part.untyped_storage().nbytes() for part in parts}.values())


class Marked(ForwardProcess):
    """A forward process that marks the end of each forward pass in the profile."""

    def loss(self, *args):
        value = super().loss(*args)
        with torch.profiler.record_function("forward is over"):
            return value


class Watched:
    """An optimizer that measures the gradients."""

    def __init__(self, optimizer, unet):
        self.optimizer, self.unet, self.gradients = optimizer, unet, 0
        self.zero_grad = optimizer.zero_grad

    def step(self):
        self.gradients = own_bytes([parameter.grad for parameter in self.unet.parameters()])
        self.optimizer.step()


def measure(what):
    """Return the bytes of a rank's state, and the bytes that torch's CPU allocator holds in addition.

    The latter is measured at the end of the first forward pass and at the peak, after the second step (in which DDP
    still rebuilds its buckets).
    """
    with process_group() as ranks:
        micro, count = micro_batches(what.train, ranks.world_size)
        mesh = build_mesh(what.parallel, "cpu", ranks.world_size)
        unet = UNet(what.stage.unet)
        if mesh is None:
            unet.to(memory_format=torch.channels_last)
        network = parallelize(unet, what.parallel, mesh, ranks.world_size)
        optimizer = build_optimizer(named_weights(unet), what.optim, permuted=permuted_weights(unet))
        ema, watched = Ema(unet, 0.999), Watched(optimizer, unet)
        null_LD, cpu = torch.zeros(1, what.text.width), torch.device("cpu")
        noising = Marked(
            what.stage,
            seed=0,
            batch_size=what.train.batch_size,
            device=cpu,
            unconditional_LD=null_LD,
            text_dropout=what.train.text_dropout,
            schedule=what.train.schedule,
        )

        def step():
            batches = real_batches(what, count, micro)
            training_step(network, batches, count, noising, watched, clip_norm=1e-3, autocast=nullcontext, ranks=ranks)
            ema.update(unet, 1)

        step()
        step()
        found = [profiled(step) for _ in range(4)]
        states = [state for part in optimizer.optimizers for state in part.state.values()]
        held = {
            "parameters": own_bytes(unet.parameters()),
            "gradients": watched.gradients,
            "optimizer": own_bytes(value for state in states for value in state.values()),
            "ema": own_bytes(ema.weights.values()),
        }
        # The minimum over several steps, because gloo's threads free sent buffers at varying times.
        return held, *map(min, zip(*found, strict=True))


def profiled(step):
    """Return the bytes that `step` holds at the end of its first forward pass and at its peak."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profile:
        step()
    totals, marks = [0], []
    for event in sorted(profile.profiler.kineto_results.events(), key=lambda event: event.start_ns()):
        if event.name() == "[memory]":
            totals.append(totals[-1] + event.nbytes())
        elif event.name() == "forward is over":
            marks.append(totals[-1])
    return marks[0], max(totals)


SLOW = ("fsdp", "fsdp, full")  # the others cover each of their parts


@pytest.mark.parametrize(
    "layout", [pytest.param(layout, marks=pytest.mark.slow) if layout in SLOW else layout for layout in LAYOUTS]
)
def test_predicted_bytes_equal_those_of_four_ranks(layout):
    what = experiment(*LAYOUTS[layout])
    of_ranks = run_on_ranks(4, measure, what, timeout=120)
    with DryRun(what, 4, dtype=None, gpu=False) as dry_run:
        traced = dry_run.trace(what.parallel, micro_batches(what.train, 4)[0])
    assert all(dry_run.held == held for held, _, _ in of_ranks)
    after_forward, peak = (min(found[number] for found in of_ranks) for number in (1, 2))
    interval = traced.interval
    after_first_forward = interval.totals[interval.phases.index("backward") - 1]
    assert after_first_forward - interval.before == pytest.approx(after_forward, rel=0.01)
    assert interval.peak - interval.before == pytest.approx(peak, rel=0.1)


def test_two_sizes_predict_the_others():
    what = experiment("--train.batch_size", "128", "--parallel.shard", "4")
    with DryRun(what, 4, dtype=torch.bfloat16, gpu=True) as dry_run:
        low, high, third = (dry_run.trace(what.parallel, size) for size in (2, 4, 16))
    assert predicted_peak(low, high, 16) == pytest.approx(third.interval.peak, rel=1e-3)
    assert third.interval.peak > 3 * low.interval.peak


@pytest.mark.parametrize("fields", [(), ("--parallel.shard", "2")])
def test_recomputation_is_counted_separately(fields):
    what = experiment(*fields)
    with DryRun(what, 4, dtype=torch.bfloat16, gpu=True) as dry_run:
        once = dry_run.trace(what.parallel, 8)
        again = dry_run.trace(replace(what.parallel, checkpointing="full"), 2)
    assert once.flops["forward"] / 8e9 == pytest.approx(describe(what)["gflop"], abs=0.005)  # `describe` rounds
    assert 1.8 < once.flops["backward"] / once.flops["forward"] < 2.1
    assert {name: again.flops[name] for name in once.flops} == pytest.approx(once.flops)
    # The last convolution of a block is not recomputed, because the backward pass does not need its result.
    assert 0.4 < again.flops["recomputation"] / again.flops["forward"] < 0.6


def test_traffic_of_each_layout():
    def sent(*fields, sizes):
        what = experiment(*fields)
        with DryRun(what, 8, dtype=torch.bfloat16, gpu=True) as dry_run:
            return 4 * dry_run.parameters, *(dry_run.trace(what.parallel, size).sent for size in sizes)

    whole, ddp = sent(sizes=[4])
    assert ddp == {("all-reduce", "all"): pytest.approx(2 * 7 / 8 * whole, rel=1e-3)}
    _, once, four = sent("--parallel.shard", "2", sizes=[4, 1])
    # Within a replica of two: gradients, and two all-gathers of bfloat16 parameters. Between the four replicas: half of
    # the float32 gradients.
    assert once["reduce-scatter", "shard"] == pytest.approx(whole / 2, rel=0.02)
    assert 0.5 * whole / 2 < once["all-gather", "shard"] < whole / 2
    assert once["all-reduce", "replicate"] == pytest.approx(2 * 3 / 4 * whole / 2, rel=0.02)
    assert four["reduce-scatter", "shard"] == 4 * once["reduce-scatter", "shard"]
    assert four["all-reduce", "replicate"] == once["all-reduce", "replicate"]


PICTURE_BYTES = {("none", ()): 16, ("selective", (0,)): 8, ("full", ()): 2}


class Lines:
    """A fake dry run with 100 bytes of state and some bytes per image."""

    def __init__(self, what, world_size):
        self.experiment, self.world_size = what, world_size

    def trace(self, parallel, size):
        totals = np.array([100, 100 + size * PICTURE_BYTES[parallel.checkpointing, parallel.checkpoint_levels], 130])
        interval = TrackedInterval(100, totals, ["forward", "backward", "update"], {}, {}, {})
        return TracedStep(parallel, size, 64 // self.world_size // size, interval, {})


def test_largest_fitting_micro_batch_with_least_recomputation():
    def chosen(usable, *fields):
        found = choose(Lines(experiment("--train.batch_size", "64", *fields), 2), usable, "card")
        assert found.interval.peak <= usable
        return found.parallel.checkpointing, found.micro_batch

    assert chosen(100 + 16 * 32) == ("none", 32)
    assert chosen(100 + 16 * 32 - 1) == ("none", 16)
    assert chosen(100 + 16 * 8) == ("none", 8)
    assert chosen(100 + 16 * 8 - 1) == ("selective", 8)
    assert chosen(100 + 8 * 8 - 1) == ("full", 16)
    assert chosen(130) == ("full", 8)
    assert chosen(132, "--train.micro_batch", "2") == ("none", 2)
    assert chosen(132, "--train.micro_batch", "4") == ("selective", 4)
    assert chosen(170, "--parallel.checkpointing", "full") == ("full", 32)
    with pytest.raises(UserError, match=r"debug_64 does not fit: a micro-batch of 1 .* more shards"):
        chosen(129)
    with pytest.raises(UserError, match=r"a micro-batch of 8 .* a smaller micro-batch or more shards"):
        chosen(115, "--train.micro_batch", "8")


def test_only_the_factors_of_adapters_are_stored(tmp_path):
    """A checkpoint of `finetune_lora` has neither the frozen weights nor moments of them."""
    adapters = preset("finetune_lora")
    with DryRun(adapters, 1, dtype=None, gpu=False) as dry_run:
        pass
    with torch.device("meta"):
        unet = UNet(adapters.stage.unet)
        adapt(unet, adapters)
        factors = sum(p.numel() for p in unet.parameters() if p.requires_grad)
    # In float32: the factors, their EMA, and two moments of AdamW with a step per tensor.
    assert 16 * factors <= dry_run.stored < 16.1 * factors


def test_candidates_divide_the_share():
    assert candidates(experiment("--train.batch_size", "12"), 1) == [1, 2, 3, 4, 6, 12]
    assert candidates(experiment("--train.batch_size", "12", "--train.micro_batch", "4"), 1) == [4]


def test_checkpointings_are_ordered_by_cost():
    found = [(p.checkpointing, p.checkpoint_levels) for p in checkpointings(experiment().parallel, 3)]
    assert found == [("none", ()), ("selective", (0,)), ("selective", (0, 1)), ("full", ())]
    full = experiment("--parallel.checkpointing", "full").parallel
    assert list(checkpointings(full, 3)) == [full]


def test_command(imagen, error_of):
    found = json.loads(imagen("plan", "debug_64", "--gpus", 2, "--gpu", "l40s", "--json", "--train.batch_size", 16))
    assert found["micro_batch"] == 8 and found["checkpointing"] == "none" and found["precision"] == "bf16"
    assert found["memory"]["peak"] == sum(found["memory"]["at_peak"].values()) < found["memory"]["usable"]
    assert found["images_per_s"] == pytest.approx(16 / found["step_s"]) and found["assumed"]["mfu"] == 0.4
    shown = imagen("plan", "debug_256", "--gpu", "cpu", "--samples", 1000)
    assert "counted: a checkpoint takes" in shown and "assumed:" in shown and "images/s" not in shown
    buckets = ["--train.batch_size", 64, "--data.buckets", "auto", "--data.bucket_batch", 2, "--json"]
    assert json.loads(imagen("plan", "debug_64", "--gpu", "l40s", *buckets))["micro_batch"] == 2  # as in training
    assert "choose a100-40gb, a100-80gb, h100-80gb" in error_of("plan", "debug_64", "--gpu", "h100")
    assert "is not divisible by 3 ranks" in error_of("plan", "debug_64", "--gpus", 3)
    assert "--mfu" in error_of("plan", "debug_64", "--mfu", 2)
