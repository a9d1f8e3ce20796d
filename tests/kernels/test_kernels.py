"""Compare custom kernels with torch's operations, and run the Triton code in its interpreter."""

import importlib.util
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from imagen.kernels import norm as kernel
from imagen.kernels.norm import group_norm
from imagen.kernels.philox import normal, normal_for, words

ACTIVATIONS = {"none": lambda z: z, "silu": F.silu, "gelu": F.gelu}
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
# Shapes with incomplete channel blocks, incomplete pixel tiles, groups of one channel, and many tiles.
SHAPES = [((2, 96, 12, 12), 32), ((1, 224, 5, 3), 32), ((2, 20, 9, 9), 20), ((1, 8, 40, 40), 4)]


def expected(x, weight, bias, groups, activation, scale, shift):
    """Compute the reference with torch's operations."""
    z = F.group_norm(x, groups, weight, bias)
    if scale is not None:
        z = z * (1 + scale[:, :, None, None]) + shift[:, :, None, None]
    return ACTIVATIONS[activation](z)


def random_inputs(shape, dtype, modulated) -> list[Tensor | None]:
    generator = torch.Generator().manual_seed(0)
    B, C = shape[:2]
    draw = lambda *size: torch.randn(*size, generator=generator)  # noqa: E731
    x = (3 + 2 * draw(*shape)).contiguous(memory_format=torch.channels_last)  # a mean far from zero
    both = draw(B, 2 * C).chunk(2, 1) if modulated else (None, None)
    given = [x, 1 + 0.3 * draw(C), 0.3 * draw(C), *both]
    return [None if tensor is None else tensor.to(dtype) for tensor in given]


def assert_close_to_torch(shape, groups, activation, modulated, dtype, tolerance):
    given = random_inputs(shape, dtype, modulated)
    leaves = [None if tensor is None else tensor.detach().requires_grad_() for tensor in given]
    doubles = [None if tensor is None else tensor.detach().double().requires_grad_() for tensor in given]
    x, weight, bias, scale, shift = leaves
    y = group_norm(x, weight, bias, groups, 1e-5, activation, scale, shift)
    assert y.dtype == dtype and y.is_contiguous(memory_format=torch.channels_last)
    wanted = expected(doubles[0], doubles[1], doubles[2], groups, activation, *doubles[3:])
    upstream = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    y.backward(upstream)
    wanted.backward(upstream.double())
    pairs = [(y.detach(), wanted.detach())]
    pairs += [(a.grad, b.grad) for a, b in zip(leaves, doubles, strict=True) if a is not None]
    for ours, reference in pairs:
        # Relative to the largest value of the tensor, since sums over all pixels are large.
        scale_of = reference.abs().max().clamp(min=1)
        assert (ours.double() - reference).abs().max() / scale_of < tolerance


@pytest.mark.parametrize("shape, groups", SHAPES)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("modulated", [False, True])
@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.bfloat16, 1e-2)])
def test_group_norm_equals_torch(shape, groups, activation, modulated, dtype, tolerance):
    assert_close_to_torch(shape, groups, activation, modulated, dtype, tolerance)


@pytest.mark.skipif(INTERPRETED, reason="only the reference supports float64")
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("modulated", [False, True])
def test_gradients_equal_finite_differences(activation, modulated):
    given = random_inputs((2, 6, 3, 2), torch.float64, modulated)
    leaves = [tensor.detach().requires_grad_() for tensor in given if tensor is not None]

    def function(x, weight, bias, *modulation):
        return group_norm(x, weight, bias, 3, 1e-5, activation, *modulation)

    assert torch.autograd.gradcheck(function, leaves)


@pytest.mark.skipif(INTERPRETED, reason="the registration of the operation does not depend on the interpreter")
@pytest.mark.parametrize("modulated", [False, True])
def test_the_operation_passes_opcheck(modulated):
    x, *rest = random_inputs((2, 6, 3, 2), torch.float32, modulated)
    leaves = [tensor if tensor is None else tensor.detach().requires_grad_() for tensor in (x, *rest)]
    torch.library.opcheck(kernel.norm_forward, (*leaves, 3, 1e-5, "silu"))
    mean, rstd = torch.zeros(2, 3), torch.ones(2, 3)
    torch.library.opcheck(kernel.norm_backward, (x, x, *rest, mean, rstd, "silu"))


def test_philox_gives_the_published_test_vectors():
    """Compare with the test vectors of the authors' library, Random123 (kat_vectors, philox4x32 10)."""
    digits_of_pi = (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1)
    # (block, sample, purpose, low and high word of the key)
    answers = {
        (0, 0, 0, 0, 0): (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8),
        (0xFFFFFFFF, 2**64 - 1, 0xFFFFFFFF, 0xFFFFFFFF, 0xFFFFFFFF): (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD),
        (0x243F6A88, 0x13198A2E85A308D3, 0x03707344, 0xA4093822, 0x299F31D0): digits_of_pi,
    }
    for (block, sample, purpose, low, high), answer in answers.items():
        counter = (block, sample & 0xFFFFFFFF, sample >> 32, purpose)
        found = words([np.array([word], np.uint64) for word in counter], low | high << 32)
        assert tuple(int(word[0]) for word in found) == answer


def test_noise_depends_only_on_key_sample_and_purpose():
    whole = normal((6, 3, 10, 10), 2**63 + 5, 2**33 - 2, 1)
    assert torch.equal(normal((2, 3, 10, 10), 2**63 + 5, 2**33 + 1, 1), whole[3:5])
    assert torch.equal(normal((6, 3, 10, 9), 2**63 + 5, 2**33 - 2, 1).flatten(1)[:, :270], whole.flatten(1)[:, :270])
    for other in (normal((6, 3, 10, 10), 5, 2**33 - 2, 1), normal((6, 3, 10, 10), 2**63 + 5, 2**33 - 2, 2)):
        assert (other - whole).abs().min(0).values.max() > 0.1
    assert whole.is_contiguous(memory_format=torch.channels_last)
    samples_B = torch.tensor([2**33 + 1, 2**33 - 2])
    assert torch.equal(normal_for(samples_B, (3, 10, 10), 2**63 + 5, 1, torch.device("cpu")), whole[[3, 0]])


def test_noise_is_standard_normal():
    x = normal((64, 4096), 3, 0, 0).double()
    n = x.numel()
    for power, moment in ((1, 0), (2, 1), (3, 0), (4, 3), (6, 15)):
        variance = (x**power).var()
        assert abs((x**power).mean() - moment) < 4 * (variance / n) ** 0.5
    assert abs((x[:, 1:] * x[:, :-1]).mean()) < 4 / n**0.5  # adjacent pixels, within and across counters
    assert abs((x[1:] * x[:-1]).mean()) < 4 / n**0.5  # samples
    shares = torch.stack([(x < edge).double().mean() for edge in (-2, -1, 0, 1, 2)])
    assert torch.allclose(shares, torch.special.ndtr(torch.tensor([-2.0, -1, 0, 1, 2])).double(), atol=4 / n**0.5)


@pytest.mark.skipif(not INTERPRETED, reason="run by the test below in a separate process")
@pytest.mark.parametrize("shape", [(3, 3, 10, 10), (2, 7), (1, 3, 40, 33)])
def test_triton_computes_the_same_noise(shape):
    from imagen.kernels import triton_philox

    key, first, purpose = 2**64 - 12345, 2**33 - 1, 3
    wanted = normal(shape, key, first, purpose)
    out = torch.empty_like(wanted)
    samples_B = torch.arange(first, first + len(out))
    triton_philox.fill_normal(out, samples_B, key - 2**64, purpose)
    torch.testing.assert_close(out, wanted, rtol=0, atol=2e-6)


@pytest.mark.slow
@pytest.mark.skipif(INTERPRETED, reason="this test starts the interpreter")
@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is only included in torch for CUDA")
def test_the_triton_kernels_pass_in_the_interpreter():
    """Run the tests of this file again, with the Triton kernels in Triton's interpreter."""
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__],
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout[-5000:]
    assert "passed" in done.stdout


@pytest.fixture(autouse=True)
def use_interpreter(monkeypatch):
    if INTERPRETED:
        monkeypatch.setattr(kernel, "use_triton", lambda x: True)
