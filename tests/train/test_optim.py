import math
from dataclasses import replace

import pytest
import torch
from toy import UNET

from imagen.models.unet import UNet
from imagen.train.optim import OptimConfig, build_optimizer, learning_rate


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


def test_edges():
    assert learning_rate(OptimConfig(lr=1.0, warmup_steps=0, schedule="constant"), 1, 1) == 1.0
    assert learning_rate(OptimConfig(lr=1.0, warmup_steps=100), 10, 10) == pytest.approx(0.1)  # ends in the warm-up
    assert learning_rate(OptimConfig(lr=1.0, warmup_steps=0), 20, 10) == pytest.approx(0.0, abs=1e-12)


def test_adamw_against_float64():
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


def test_muon_takes_the_inner_matrices_and_adamw_the_rest():
    unet = UNet(replace(UNET, low_res=True))
    config = OptimConfig(algorithm="muon", lr=1e-3, muon_lr=5e-3)
    optimizer = build_optimizer(unet.named_parameters(), config)
    names = {id(parameter): name for name, parameter in unet.named_parameters()}
    inner, rest = ({names[id(p)] for p in group["params"]} for group in optimizer.param_groups)
    assert inner | rest == set(names.values()) and not inner & rest
    outer = {"conv_in", "conv_out", "noise_embedding.layers.0", "low_res_embedding.layers.0"}
    assert {name for name, p in unet.named_parameters() if p.ndim < 2} | {f"{n}.weight" for n in outer} == rest
    optimizer.set_learning_rate(1e-4)  # a tenth of the peak, for both
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([5e-4, 1e-4])
