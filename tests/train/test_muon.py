"""Test Muon against the singular value decomposition and its formula in float64."""

import pytest
import torch

from imagen.precision import Arithmetic
from imagen.train import muon
from imagen.train.muon import Muon, orthogonalise

SHAPES = [(3, 16, 16), (2, 8, 40), (1, 40, 8)]


@pytest.fixture(params=[torch.float32, torch.bfloat16], ids=["fp32", "bf16"], autouse=True)
def matrices(request, monkeypatch):
    """Run every test with float32 and bfloat16 products, whichever the processor supports."""
    monkeypatch.setattr(muon, "arithmetic", lambda device: Arithmetic(None, torch.float32, request.param))
    return request.param


@pytest.mark.parametrize("shape", SHAPES)
def test_the_iteration_equals_its_polynomial_in_float64(shape, matrices):
    """Each singular value s, over the matrix's norm, becomes q4(q3(q2(q1(s)))); the singular vectors do not change."""
    stack = torch.randn(shape, generator=torch.Generator().manual_seed(4))
    U, s, Vh = torch.linalg.svd(stack.double(), full_matrices=False)
    s = s / stack.double().norm(dim=(-2, -1))[:, None]
    for a, b, c in muon.QUINTICS:
        x = s / muon.MARGIN
        s = a * x + b * x**3 + c * x**5
    expected = U @ (s[..., None] * Vh)
    error = (orthogonalise(stack).double() - expected).abs().max()
    assert error < (2e-5 if matrices is torch.float32 else 0.1)


@pytest.mark.parametrize("rank", [1, 2, 16])
def test_singular_values_from_0_0025_to_1_end_near_1(rank, matrices):
    """Includes matrices with one large singular value, at which the first quintic is steepest."""
    g = torch.Generator().manual_seed(5)
    U, _ = torch.linalg.qr(torch.randn(4, 48, 48, generator=g))
    V, _ = torch.linalg.qr(torch.randn(4, 64, 64, generator=g))
    s = torch.cat([torch.logspace(0, -2.3, rank), torch.zeros(48 - rank)])
    result = orthogonalise(U @ torch.diag(s) @ V[..., :48].mT).double()
    values = torch.linalg.svdvals(result)[:, :rank]
    assert values.min() > 0.7 and values.max() < (1.26 if matrices is torch.float32 else 1.35)


@pytest.mark.parametrize("shape", SHAPES)
def test_orthogonalise_changes_only_singular_values(shape):
    g = torch.Generator().manual_seed(0)
    matrices = torch.randn(shape, generator=g)
    result = orthogonalise(matrices).double()
    U, _, Vh = torch.linalg.svd(matrices.double(), full_matrices=False)
    in_its_own_basis = U.mT @ result @ Vh.mT  # diagonal if the singular vectors do not change
    values = in_its_own_basis.diagonal(dim1=-2, dim2=-1)
    assert (values > 0.7).all() and (values < 1.3).all()
    assert (in_its_own_basis - torch.diag_embed(values)).abs().max() < 0.1  # bfloat16


def test_invariant_to_the_scale_of_the_gradient():
    matrices = torch.randn(1, 12, 20, generator=torch.Generator().manual_seed(1))
    assert torch.equal(orthogonalise(2**-13 * matrices), orthogonalise(2**13 * matrices))
    assert orthogonalise(torch.zeros(1, 4, 4)).abs().max() == 0
    tiny = orthogonalise(2**-90 * matrices)  # whose squares are 0 in float32
    torch.testing.assert_close(tiny, orthogonalise(matrices), rtol=0, atol=0.02)


def test_steps_equal_the_formula_and_a_convolution_is_a_matrix():
    g = torch.Generator().manual_seed(2)
    conv = torch.nn.Parameter(torch.randn(6, 4, 3, 3, generator=g).contiguous(memory_format=torch.channels_last))
    other = torch.nn.Parameter(torch.randn(6, 36, generator=g))  # the same shape as the convolution's matrix
    W, m = conv.detach().double().flatten(1), torch.zeros(6, 36, dtype=torch.float64)
    optimizer = Muon([conv, other], lr=0.1, momentum=0.8, weight_decay=0.5)
    for _ in range(4):
        gradient = torch.randn(6, 4, 3, 3, generator=g)
        conv.grad, other.grad = gradient, torch.randn(6, 36, generator=g)
        optimizer.step()
        G = gradient.double().flatten(1)
        m = 0.8 * m + 0.2 * G
        update = orthogonalise((0.2 * G + 0.8 * m)[None])[0].double()
        W = (1 - 0.1 * 0.5) * W - 0.1 * 0.2 * 36**0.5 * update
    torch.testing.assert_close(conv.detach().double().flatten(1), W, rtol=0, atol=0.01)  # bfloat16 updates


def test_update_has_the_root_mean_square_of_adam():
    parameter = torch.nn.Parameter(torch.zeros(64, 256))
    parameter.grad = 7 * torch.randn(64, 256, generator=torch.Generator().manual_seed(3))
    Muon([parameter], lr=1e-3).step()
    assert float(parameter.detach().square().mean().sqrt()) == pytest.approx(0.2e-3, rel=0.2)


def test_vectors_are_rejected():
    with pytest.raises(ValueError, match="matrices"):
        Muon([torch.nn.Parameter(torch.zeros(3))], lr=1e-3)
