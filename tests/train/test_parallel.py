"""Test that training on several ranks, sharded or not, equals training in one process."""

import dataclasses

import numpy as np
import pytest
import torch
from ranks import run_on_ranks
from run_state import assert_same, last_checkpoint, metrics
from toy import UNET, experiment, train_on_rank, train_quietly

from imagen.cascade import Cascade, SamplingConfig
from imagen.errors import UserError
from imagen.pictures import read_picture
from imagen.train.config import OptimConfig, ParallelConfig
from imagen.train.export import export_run
from imagen.train.grid import SampleGrid
from imagen.train.posthoc import reconstruct
from imagen.train.ranks import process_group

STEPS = 6
LAYOUTS = {
    "ddp": ParallelConfig(),
    "fsdp": ParallelConfig(shard=4),
    "hsdp": ParallelConfig(shard=2),
    "ddp, full": ParallelConfig(checkpointing="full"),
    "fsdp, full": ParallelConfig(shard=4, checkpointing="full"),
    "hsdp, selective": ParallelConfig(shard=2, checkpointing="selective", checkpoint_levels=(0,)),
}


def toy_experiment(parallel, **train):
    """Return the toy experiment with every step logged."""
    others = {"ema_sigma_rels": (0.1,), "ema_snapshot_every": 3, "checkpoint_every": 4}
    unet = dataclasses.replace(UNET, middle=True)
    what = experiment(unet, **{"steps": STEPS, "log_every": 1, "gap_every": 3, **others, **train})
    # Adam divides by the root of the squared gradient: if that is nearly 0, the sign of the update depends on rounding.
    optim = OptimConfig(lr=1e-3, warmup_steps=4, eps=1e-4, schedule="constant")
    return dataclasses.replace(what, parallel=parallel, optim=optim)


@pytest.fixture(scope="module")
def alone(shards, tmp_path_factory):
    run = tmp_path_factory.mktemp("alone")
    train_quietly(toy_experiment(ParallelConfig()), shards, run)
    return run, metrics(run)


def assert_close(rows, expected, names=("loss", "eps_mse", "grad_norm", "conditional_gap", "loss_t0", "loss_t3")):
    assert [row["step"] for row in rows] == [row["step"] for row in expected]
    for row, wanted in zip(rows, expected, strict=True):
        for name in names:
            if name in wanted:
                assert row[name] == pytest.approx(wanted[name], rel=1e-5, abs=1e-6), (row["step"], name)


CASES = [(2, "ddp"), (2, "fsdp"), *((4, layout) for layout in LAYOUTS)]
QUICK = [(2, "ddp"), (4, "hsdp")]


@pytest.mark.parametrize(
    "world_size, layout", [case if case in QUICK else pytest.param(*case, marks=pytest.mark.slow) for case in CASES]
)
def test_loss_and_gradient_equal_those_of_one_process(shards, tmp_path, alone, world_size, layout):
    reported = run_on_ranks(world_size, train_on_rank, toy_experiment(LAYOUTS[layout]), shards, tmp_path)
    assert_close(metrics(tmp_path), alone[1])
    assert reported[0] and not any(reported[1:])  # only the first rank reports


@pytest.mark.parametrize("algorithm", ["adafactor", "muon"])
def test_sharded_convolutions_are_updated_as_full_ones(shards, tmp_path, algorithm):
    """Sharded convolutions store weights in another order, which optimizers, EMAs and checkpoints must not see.

    A checkpoint of two ranks is resumed in one process.
    """
    whole, sharded = (toy_experiment(LAYOUTS[layout], steps=3, precision="fp32") for layout in ("ddp", "fsdp"))
    optim = dataclasses.replace(whole.optim, algorithm=algorithm, warmup_steps=1)
    whole, sharded, first = (
        dataclasses.replace(what, optim=optim, train=dataclasses.replace(what.train, steps=steps))
        for what, steps in ((whole, 3), (sharded, 3), (sharded, 2))
    )
    train_quietly(whole, shards, tmp_path / "alone")
    run_on_ranks(2, train_on_rank, first, shards, tmp_path / "both")
    train_quietly(whole, shards, tmp_path / "both")
    mine, expected = last_checkpoint(tmp_path / "both"), last_checkpoint(tmp_path / "alone")
    assert_close(metrics(tmp_path / "both"), metrics(tmp_path / "alone"), names=("loss",))
    for kind in ("model", "ema", "optimizer"):
        assert mine[kind].keys() == expected[kind].keys()
        convolutions = {name: value for name, value in expected[kind].items() if value.ndim == 4}
        assert convolutions
        for name, value in convolutions.items():
            error = torch.linalg.vector_norm(mine[kind][name] - value)
            assert error <= 0.03 * torch.linalg.vector_norm(value), f"{kind} {name}"  # Muon's products are bfloat16


def test_sharded_bfloat16_equals_one_process(shards, tmp_path):
    """Compares with the tolerance of bfloat16, which has 8 significant bits."""
    what = toy_experiment(LAYOUTS["fsdp"], steps=3, precision="bf16")
    train_quietly(what, shards, tmp_path / "alone")
    run_on_ranks(2, train_on_rank, what, shards, tmp_path / "sharded")
    for row, wanted in zip(metrics(tmp_path / "sharded"), metrics(tmp_path / "alone"), strict=True):
        assert row["loss"] == pytest.approx(wanted["loss"], rel=1e-3)
        assert row["grad_norm"] == pytest.approx(wanted["grad_norm"], rel=2e-2)


def test_a_run_resumes_with_another_number_of_ranks(shards, tmp_path, alone):
    """Trains on four ranks in two replicas, then on two in one, then in one process; equals training in one process."""
    run_on_ranks(4, train_on_rank, toy_experiment(LAYOUTS["hsdp"], steps=2), shards, tmp_path)
    run_on_ranks(2, train_on_rank, toy_experiment(LAYOUTS["fsdp"], steps=4), shards, tmp_path)
    train_quietly(toy_experiment(ParallelConfig()), shards, tmp_path)
    assert_close(metrics(tmp_path), alone[1])
    mine, expected = last_checkpoint(tmp_path), last_checkpoint(alone[0])
    assert mine["position"] == expected["position"] == STEPS * 8
    for kind in ("model", "ema", "sigma_rel-0.1", "optimizer"):
        assert mine[kind].keys() == expected[kind].keys() and mine[kind]
        for name, value in expected[kind].items():
            torch.testing.assert_close(mine[kind][name], value, rtol=1e-4, atol=1e-6, msg=f"{kind} {name}")
    (here, _, distance), (there, _, _) = (reconstruct(run / "averages", 0.1) for run in (tmp_path, alone[0]))
    assert distance == pytest.approx(0, abs=1e-6) and here.keys() == there.keys()
    for name, value in there.items():
        torch.testing.assert_close(here[name], value, rtol=1e-2, atol=1e-4)  # float16


@pytest.mark.parametrize("world_size, layout", [(2, "fsdp"), pytest.param(4, "hsdp", marks=pytest.mark.slow)])
def test_resuming_on_the_same_number_of_ranks_is_exact(shards, tmp_path, world_size, layout):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    run_on_ranks(world_size, train_on_rank, toy_experiment(LAYOUTS[layout], steps=4), shards, whole)
    run_on_ranks(world_size, train_on_rank, toy_experiment(LAYOUTS[layout], steps=2), shards, parts)
    run_on_ranks(world_size, train_on_rank, toy_experiment(LAYOUTS[layout], steps=4), shards, parts)
    assert_same(last_checkpoint(parts), last_checkpoint(whole))


def test_one_process_exports_a_sharded_run(shards, tmp_path):
    run_on_ranks(2, train_on_rank, toy_experiment(LAYOUTS["fsdp"], steps=2), shards, tmp_path / "run")
    export_run(tmp_path / "run", tmp_path / "again")
    theirs, mine = Cascade.load(tmp_path / "run"), Cascade.load(tmp_path / "again")
    assert_same(dict(mine.stages[0].unet.state_dict()), dict(theirs.stages[0].unet.state_dict()))
    assert mine.stages[0].info["step"] == 2
    with pytest.raises(UserError, match="no checkpoint of step 1, only of 2"):
        export_run(tmp_path / "run", tmp_path / "again", step=1)


def sheet_of(what, shards, run):
    with process_group() as ranks:
        train_quietly(what, shards, run, ranks=ranks, callbacks=[SampleGrid()])


def test_sample_grids_equal_those_of_one_process(shards, tmp_path):
    """A sharded network is sampled without moving or copying it."""
    what = toy_experiment(LAYOUTS["fsdp"], steps=1)
    sampling = SamplingConfig(steps=2, threshold="static", guidance=2.0)
    what = dataclasses.replace(what, stage=dataclasses.replace(what.stage, sampling=sampling))
    sheet_of(what, shards, tmp_path / "alone")
    run_on_ranks(2, sheet_of, what, shards, tmp_path / "sharded")
    mine, alone = (
        np.asarray(read_picture(tmp_path / run / "samples" / "step-00000001.png")).astype(int)
        for run in ("sharded", "alone")
    )
    assert abs(mine - alone).max() <= 1 and alone.std() > 1
