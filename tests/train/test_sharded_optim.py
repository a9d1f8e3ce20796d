"""Test that every optimizer takes the same steps on parameters sharded by rows as in one process."""

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from ranks import run_on_ranks
from sharding import make_model, set_gradients, weights
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)

from imagen.train.config import OptimConfig
from imagen.train.optim import build_optimizer
from imagen.train.sharded import full_tensor

CONFIGS = {
    "adamw": OptimConfig(algorithm="adamw", lr=0.01, weight_decay=0.1),
    "adam": OptimConfig(algorithm="adam", lr=0.01),
    "adamw, int8": OptimConfig(algorithm="adamw", state="int8", lr=0.01, weight_decay=0.1),
    "adafactor": OptimConfig(algorithm="adafactor", lr=0.01, betas=(0.0, 0.999), weight_decay=0.1),
    "adafactor, first moment": OptimConfig(algorithm="adafactor", lr=0.01),
    "muon": OptimConfig(algorithm="muon", lr=0.01, muon_lr=0.02, weight_decay=0.1),
}
STEPS = 6


def optimizer_state(model, optimizers):
    return get_optimizer_state_dict(
        model, optimizers.optimizers, options=StateDictOptions(flatten_optimizer_state_dict=True)
    )


def steps(layout, config, first, last, *, load=None, save=None):
    """Return the full weights and optimizer state after steps `first` to `last`."""
    model = make_model(layout)
    optimizers = build_optimizer(model.named_parameters(), config, dist.group.WORLD if layout == "ddp" else None)
    if load is not None:
        state = {"model": model.state_dict(), "optimizer": optimizer_state(model, optimizers)}
        dcp.load(state, checkpoint_id=load)
        model.load_state_dict(state["model"])
        flat = StateDictOptions(flatten_optimizer_state_dict=True)
        set_optimizer_state_dict(model, optimizers.optimizers, state["optimizer"], options=flat)
    for step in range(first, last + 1):
        set_gradients(model, step)
        optimizers.step()
        optimizers.zero_grad()
    state = optimizer_state(model, optimizers)
    if save is not None:
        dcp.save({"model": model.state_dict(), "optimizer": state}, checkpoint_id=save)
    moments = {name: full_tensor(value).clone() for name, value in state.items() if isinstance(value, torch.Tensor)}
    return weights(model) | moments


def all_steps(layouts):
    return {(layout, name): steps(layout, config, 1, STEPS) for layout in layouts for name, config in CONFIGS.items()}


def save_half(folder):
    for layout in ("fsdp", "hsdp"):
        for name, config in CONFIGS.items():
            steps(layout, config, 1, STEPS // 2, save=folder / layout / name)


def resume(folder, layout):
    return {
        (saved, name): steps(layout, config, STEPS // 2 + 1, STEPS, load=folder / saved / name)
        for saved in ("fsdp", "hsdp")
        for name, config in CONFIGS.items()
    }


@pytest.fixture(scope="module")
def expected():
    return {name: steps("plain", config, 1, STEPS) for name, config in CONFIGS.items()}


def assert_all_equal(done, expected):
    for (layout, name), found in done.items():
        assert found.keys() == expected[name].keys()
        for key, value in expected[name].items():
            torch.testing.assert_close(found[key], value, rtol=1e-6, atol=1e-6, msg=lambda m: f"{layout} {name}: {m}")  # noqa: B023


@pytest.mark.parametrize("world_size, layouts", [(2, ["fsdp", "ddp"]), (4, ["fsdp", "hsdp", "ddp"])])
def test_steps_and_state_equal_those_of_one_process(world_size, layouts, expected):
    for done in run_on_ranks(world_size, all_steps, layouts):
        assert_all_equal(done, expected)


def test_checkpoint_of_four_ranks_resumes_on_two_and_on_one(expected, tmp_path):
    run_on_ranks(4, save_half, tmp_path)
    for done in run_on_ranks(2, resume, tmp_path, "fsdp"):
        assert_all_equal(done, expected)
    assert_all_equal(resume(tmp_path, "plain"), expected)
