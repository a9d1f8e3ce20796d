"""Test Adafactor against the implementation of transformers, in float64."""

import pytest
import torch
from torch.nn import Parameter
from transformers.optimization import Adafactor as Reference

from imagen.train.adafactor import Adafactor

F64 = torch.float64


@pytest.mark.parametrize("beta1", [0.0, 0.9])
def test_steps_equal_those_of_transformers(beta1):
    """Includes matrices, vectors, and convolutions, in which each kernel position is an independent matrix."""
    torch.manual_seed(0)
    shapes = [(40, 56), (33, 32), (17,), (48, 36, 3, 3)]
    ours = [Parameter(torch.randn(shape, dtype=F64)) for shape in shapes]
    # transformers factors the last two dimensions, so kernel positions come first.
    theirs = [Parameter(p.detach().permute(2, 3, 0, 1) if p.ndim == 4 else p.detach().clone()) for p in ours]
    optimizer = Adafactor(ours, 0.01, beta1=beta1, beta2=1.0, weight_decay=0.1)
    fixed = {"scale_parameter": False, "relative_step": False, "clip_threshold": 1.0, "decay_rate": -0.8}
    reference = Reference(theirs, lr=0.01, beta1=beta1 or None, weight_decay=0.1, **fixed)
    for _ in range(6):
        for p, q in zip(ours, theirs, strict=True):
            p.grad = 10 ** torch.randn(p.shape[0], *[1] * (p.ndim - 1), dtype=F64) * torch.randn(p.shape, dtype=F64)
            q.grad = p.grad.permute(2, 3, 0, 1).clone() if p.ndim == 4 else p.grad.clone()
        optimizer.step()
        reference.step()
        for p, q in zip(ours, theirs, strict=True):
            q = q.detach().permute(2, 3, 0, 1) if p.ndim == 4 else q.detach()
            torch.testing.assert_close(p.detach(), q, rtol=1e-12, atol=1e-12)


def test_small_matrices_store_a_second_moment_per_element():
    """Equal to Adam with beta1 0 and without bias correction, which the decay 1 - t^-0.8 makes unnecessary."""
    g = torch.Generator().manual_seed(0)
    w = Parameter(torch.zeros(3, 64, dtype=F64))
    optimizer, V, expected = Adafactor([w], 0.1), torch.zeros(3, 64, dtype=F64), torch.zeros(3, 64, dtype=F64)
    for step in range(1, 5):
        gradient = torch.randn(3, 64, generator=g, dtype=F64)
        w.grad = gradient.clone()
        optimizer.step()
        beta2 = 1 - step**-0.8
        V = beta2 * V + (1 - beta2) * gradient**2
        U = gradient / V.sqrt()
        expected -= 0.1 * U / max(1, U.square().mean().sqrt())
        torch.testing.assert_close(w.detach(), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("beta1", [0.0, 0.9])
def test_a_skipped_first_step_changes_nothing(beta1):
    torch.manual_seed(0)
    shapes = [(40, 56), (17,), (48, 36, 3, 3)]
    ours = [Parameter(torch.randn(shape)) for shape in shapes]
    plain = [Parameter(p.detach().clone()) for p in ours]
    optimizer, reference = (Adafactor(each, 0.01, beta1=beta1, weight_decay=0.1) for each in (ours, plain))
    for p in ours:
        p.grad = torch.full_like(p, torch.nan)
    optimizer.step(factor=torch.tensor(torch.nan), finite=torch.tensor(False))
    assert all(torch.equal(p, q) for p, q in zip(ours, plain, strict=True))
    for _ in range(2):
        for p, q in zip(ours, plain, strict=True):
            p.grad = torch.randn_like(p)
            q.grad = p.grad.clone()
        optimizer.step(factor=torch.tensor(1.0), finite=torch.tensor(True))
        reference.step()
        for p, q in zip(ours, plain, strict=True):
            torch.testing.assert_close(p, q)


def test_shapes_of_the_state():
    wide, bias, conv = (Parameter(torch.randn(shape)) for shape in [(64, 128), (64,), (64, 32, 3, 3)])
    for p in (wide, bias, conv):
        p.grad = torch.randn_like(p)
    optimizer = Adafactor([wide, bias, conv], 1e-3)
    optimizer.step()
    kept = [{name: tuple(value.shape) for name, value in optimizer.state[p].items()} for p in (wide, bias, conv)]
    assert kept == [
        {"steps": (), "row": (64,), "column": (128,)},
        {"steps": (), "square": (64,)},
        {"steps": (), "row": (64, 3, 3), "column": (32, 3, 3)},
    ]


def test_beta2_limits_the_decay():
    """With beta2 0.5, from step 3 on, a second moment is the mean of its previous value and the latest square."""
    w = Parameter(torch.zeros(1, dtype=F64))
    optimizer = Adafactor([w], 0.1, beta2=0.5)
    squares = []
    for gradient in (1.0, 1.0, 1.0, 3.0, 2.0):
        w.grad = torch.tensor([gradient], dtype=F64)
        optimizer.step()
        squares.append(float(optimizer.state[w]["square"]))
    assert squares == pytest.approx([1, 1, 1, 5, 4.5])


def test_missing_and_zero_gradients_do_not_change_weights():
    with_zero, without = Parameter(torch.ones(40, 40)), Parameter(torch.ones(40, 40))
    with_zero.grad = torch.zeros(40, 40)
    optimizer = Adafactor([with_zero, without], 0.1)
    optimizer.step()
    assert torch.equal(with_zero.detach(), torch.ones(40, 40)) and torch.equal(without.detach(), torch.ones(40, 40))
    assert not optimizer.state[without]
