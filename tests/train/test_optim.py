import math
from dataclasses import replace

import pytest
import torch
from toy import UNET

from imagen.errors import UserError
from imagen.models.unet import UNet
from imagen.train.config import OptimConfig
from imagen.train.optim import build_optimizer, learning_rate


def test_warm_up_then_cosine_to_zero():
    config = OptimConfig(lr=2.0, warmup_steps=10, schedule="cosine")
    assert learning_rate(config, 1, 110) == pytest.approx(0.2)
    assert learning_rate(config, 10, 110) == 2.0
    assert learning_rate(config, 35, 110) == pytest.approx(1 + math.cos(math.pi / 4))
    assert learning_rate(config, 60, 110) == pytest.approx(1.0)
    assert learning_rate(config, 110, 110) == pytest.approx(0.0, abs=1e-12)


def test_warm_up_then_constant():
    config = OptimConfig(lr=2.0, warmup_steps=4, schedule="constant")
    assert [learning_rate(config, step, 6) for step in range(1, 7)] == [0.5, 1.0, 1.5, 2.0, 2.0, 2.0]


def test_warm_up_then_inverse_root():
    config = OptimConfig(lr=2.0, warmup_steps=4, schedule="rsqrt")
    rates = [learning_rate(config, step, 100) for step in (2, 4, 16, 64)]
    assert rates == pytest.approx([1.0, 2.0, 1.0, 0.5])
    assert learning_rate(OptimConfig(lr=2.0, warmup_steps=0, schedule="rsqrt"), 4, 10) == pytest.approx(1.0)


def test_edges_of_the_schedule():
    assert learning_rate(OptimConfig(lr=1.0, warmup_steps=0, schedule="constant"), 1, 1) == 1.0
    assert learning_rate(OptimConfig(lr=1.0, warmup_steps=100), 10, 10) == pytest.approx(0.1)  # ends in the warm-up
    assert learning_rate(OptimConfig(lr=1.0, warmup_steps=0), 20, 10) == pytest.approx(0.0, abs=1e-12)


def test_adamw_equals_float64():
    torch.manual_seed(0)
    config = OptimConfig(lr=0.1, weight_decay=0.1, betas=(0.8, 0.9), eps=1e-6)
    parameter = torch.nn.Parameter(torch.randn(5, 3))
    frozen = torch.nn.Parameter(torch.ones(2), requires_grad=False)
    optimizer = build_optimizer([("w", parameter), ("frozen", frozen)], config)
    w, m, v = parameter.detach().double(), torch.zeros(5, 3).double(), torch.zeros(5, 3).double()
    for step in range(1, 6):
        gradient = torch.randn(5, 3)
        parameter.grad = gradient
        optimizer.step()
        g = gradient.double()
        m, v = 0.8 * m + 0.2 * g, 0.9 * v + 0.1 * g * g
        w = w * (1 - 0.1 * 0.1) - 0.1 * (m / (1 - 0.8**step)) / ((v / (1 - 0.9**step)).sqrt() + 1e-6)
    torch.testing.assert_close(parameter.detach().double(), w, rtol=1e-5, atol=1e-6)


def test_adam_is_adamw_without_decay():
    found = []
    for algorithm in ("adam", "adamw"):
        torch.manual_seed(0)
        parameter = torch.nn.Parameter(torch.randn(5, 3))
        optimizer = build_optimizer([("w", parameter)], OptimConfig(algorithm=algorithm, lr=0.1))
        for _ in range(4):
            parameter.grad = torch.randn(5, 3)
            optimizer.step()
        found.append(parameter.detach())
    assert torch.equal(*found)
    with pytest.raises(UserError, match=r"optim.weight_decay is 0.1, but adam has no weight decay.*adamw"):
        OptimConfig(algorithm="adam", weight_decay=0.1).check()


@pytest.mark.parametrize("beta1, kept", [(0.0, {"steps", "square"}), (0.9, {"steps", "square", "momentum"})])
def test_adafactor_settings(beta1, kept):
    parameter = torch.nn.Parameter(torch.ones(7))
    config = OptimConfig(algorithm="adafactor", lr=0.1, betas=(beta1, 0.99), weight_decay=0.2)
    optimizer = build_optimizer([("w", parameter)], config)
    optimizer.set_learning_rate(0.05)
    parameter.grad = torch.ones(7)
    optimizer.step()  # in the first step U is 1 and the first moment is 0.1
    assert set(optimizer.optimizers[0].state[parameter]) == kept
    assert optimizer.param_groups[0]["beta2"] == 0.99
    torch.testing.assert_close(parameter.detach(), torch.full((7,), 0.99 - 0.05 * (0.1 if beta1 else 1)))


def test_muon_updates_inner_matrices_and_adamw_the_rest():
    unet = UNet(replace(UNET, low_res=True))
    config = OptimConfig(algorithm="muon", lr=1e-3, muon_lr=5e-3)
    optimizer = build_optimizer(unet.named_parameters(), config)
    names = {id(parameter): name for name, parameter in unet.named_parameters()}
    inner, rest = ({names[id(p)] for p in group["params"]} for group in optimizer.param_groups)
    assert inner | rest == set(names.values()) and not inner & rest
    outer = {"conv_in", "conv_out", "noise_embedding.layers.0", "low_res_embedding.layers.0"}
    assert {name for name, p in unet.named_parameters() if p.ndim < 2} | {f"{n}.weight" for n in outer} == rest
    optimizer.set_learning_rate(1e-4)  # a tenth of the peak rate of both optimizers
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([5e-4, 1e-4])


@pytest.mark.parametrize("names", [["down.A", "down.B"], ["conv_in.weight"]], ids=["all inner", "none inner"])
def test_muon_with_parameters_of_one_kind_only(names):
    """LoRA factors are all inner matrices."""
    parameters = [(name, torch.nn.Parameter(torch.eye(4))) for name in names]
    optimizer = build_optimizer(parameters, OptimConfig(algorithm="muon"))
    for _, parameter in parameters:
        parameter.grad = torch.randn(4, 4)
    optimizer.step()
    assert all(not torch.equal(parameter, torch.eye(4)) for _, parameter in parameters)
