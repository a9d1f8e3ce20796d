"""Test 8-bit Adam against numpy, float64 and torch's AdamW, and that it resumes exactly on any number of ranks."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from command_line import run_imagen
from ranks import run_on_ranks
from run_state import assert_same, last_checkpoint, metrics
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from toy import UNET, experiment, stopping_at, train_on_rank, train_quietly

from imagen.errors import UserError
from imagen.models.unet import UNet
from imagen.presets import PRESETS
from imagen.train.adam_8bit import Adam8bit, DynamicQuantizer, dynamic_values, is_large
from imagen.train.config import OptimConfig, ParallelConfig
from imagen.train.layout import make_views, named_weights, permute_to_nhwc, permuted_weights
from imagen.train.optim import build_optimizer
from imagen.train.plan.dry_run import DryRun
from imagen.train.sharded import distribute_like, full_tensor
from imagen.train.state import create_optimizer_state, run_tensors

INT8 = OptimConfig(state="int8", lr=1e-3, warmup_steps=4)
CPU = torch.device("cpu")


# --- quantization ---


def reference_values(signed):
    """Return the data type by its bits: a sign if signed, e zeros, a 1, and a linear fraction in the bits that remain.

    The exponent is 10^-e. Two bit patterns without a fraction are 0 and 1.
    """
    found = [0.0, 1.0]
    for zeros in range(7):
        bits = (7 if signed else 8) - zeros - 1
        edges = np.linspace(0.1, 1.0, 2**bits + 1)
        centres = 10.0**-zeros * (edges[:-1] + edges[1:]) / 2
        found += [*centres, *-centres] if signed else [*centres]
    return np.sort(np.array(found))


@pytest.mark.parametrize("signed", [True, False])
def test_values_of_the_data_type(signed):
    values = np.array(dynamic_values(signed))
    assert len(np.unique(values)) == 256
    np.testing.assert_allclose(values, reference_values(signed), rtol=1e-12)
    assert values[-1] == 1 and values[0] == (pytest.approx(-0.99296875) if signed else 0)
    assert np.min(np.abs(values[values != 0])) == pytest.approx(5.5e-7 if signed else 3.25e-7)


@pytest.mark.parametrize("signed", [True, False])
def test_every_code_round_trips(signed):
    """A block of all codes contains the value 1, so its scale does not change either."""
    quantizer = DynamicQuantizer(signed=signed, device=CPU)
    codes, scales = torch.arange(256, dtype=torch.uint8).view(1, 1, 256).expand(3, 2, 256), torch.rand(3, 2) + 1e-3
    numbers = quantizer.dequantize(codes, scales)
    np.testing.assert_allclose(numbers[1, 1] / scales[1, 1], reference_values(signed), rtol=1e-6)
    again, same = quantizer.quantize(numbers)
    assert torch.equal(again, codes) and torch.equal(same, scales) and again.dtype == torch.uint8


@pytest.mark.parametrize("signed", [True, False])
def test_quantization_equals_numpy(signed):
    g = torch.Generator().manual_seed(0)
    x = torch.randn(5, 3, 200, generator=g) * torch.logspace(-12, 3, 15).view(5, 3, 1)
    x = x if signed else x.square()
    quantizer = DynamicQuantizer(signed=signed, device=CPU)
    codes, scales = quantizer.quantize(x)
    numbers, scale = x.double().numpy(), np.abs(x.double().numpy()).max(2)
    np.testing.assert_array_equal(scales, scale.astype(np.float32))
    values, relative = reference_values(signed), numbers / scale[..., None]
    nearest = np.abs(relative[..., None] - values).argmin(-1)
    if not signed:
        nearest = np.where((nearest == 0) & (relative > 0), 1, nearest)
    assert (np.abs(codes.numpy().astype(int) - nearest) > 0).mean() < 1e-3  # float32 rounding, half-way between values
    errors = np.abs(quantizer.dequantize(codes, scales).double().numpy() / scale[..., None] - relative)
    # In the decade [10^-(e+1), 10^-e] the interval is 0.9 x 10^-e / count; the error is at most half of it, or half the
    # distance to the next decade's first value.
    for decade in range(7):
        inside = (np.abs(relative) > 10.0 ** (decade - 7)) & (np.abs(relative) <= 10.0 ** (decade - 6))
        count = 2.0 ** (decade if signed else decade + 1)
        assert (errors[inside] <= 0.51 * 0.9 * 10.0 ** (decade - 6) / count).all()
    normal = torch.randn(64, 1, 256, generator=g)
    if signed:
        error = quantizer.dequantize(*quantizer.quantize(normal)) - normal
        assert error.norm() < 0.012 * normal.norm()


@pytest.mark.parametrize("signed", [True, False])
def test_the_table_finds_the_nearest_value(signed):
    """All float32 numbers next to a limit between two values, and to the ends of the table's cells."""
    quantizer = DynamicQuantizer(signed=signed, device=CPU)
    limits = quantizer.limits[:-1]
    cells = (torch.arange(2**15, dtype=torch.int32) << 16).view(torch.float32)
    cells = torch.cat([cells, -cells]) if signed else cells
    edges = torch.cat([limits, cells[cells.abs() <= 1]])
    edges = torch.cat([edges, edges.nextafter(torch.tensor(1.0)), edges.nextafter(torch.tensor(-float(signed)))])
    edges = torch.cat([edges, torch.ones(1)])  # the scale is 1
    codes, _ = quantizer.quantize(edges.view(1, 1, -1))
    assert torch.equal(codes.flatten(), torch.bucketize(edges, limits).to(torch.uint8))


def test_zeros_and_numbers_near_zero():
    signed, unsigned = (DynamicQuantizer(signed=signed, device=CPU) for signed in (True, False))
    zeros = torch.zeros(2, 1, 4)
    for quantizer in (signed, unsigned):
        assert torch.equal(quantizer.dequantize(*quantizer.quantize(zeros)), zeros)
    tiny = torch.tensor([[[1.0, 0.0, 1e-9, 1e-30]]])
    smallest = unsigned.dequantize(*unsigned.quantize(tiny)).flatten().tolist()
    assert smallest == pytest.approx([1.0, 0.0, 3.25e-7, 3.25e-7])
    assert signed.dequantize(*signed.quantize(tiny)).flatten().tolist() == [1.0, 0.0, 0.0, 0.0]


def test_small_second_moments_do_not_enlarge_updates():
    """A weight has gradients 1e-5 times those of its block, which then vanish: v must not become 0 before m does.

    Rounded to 0, it would give an update of m / eps, 687 times the learning rate.
    """
    weight = torch.nn.Parameter(torch.zeros(64, 64))
    optimizer = Adam8bit([weight], lr=1.0, eps=1e-8)
    gradient = torch.ones(64, 64)
    gradient[:, 0] = 1e-5
    largest = 0.0
    for step in range(20):
        before = weight.detach().clone()
        weight.grad = gradient.clone()
        if step >= 10:
            weight.grad[:, 0] = 0
        optimizer.step()
        largest = max(largest, float((weight.detach() - before).abs().max()))
    assert largest < 1.001


# --- steps ---


def test_steps_equal_float64_to_the_quantization_error():
    """Also with rows that are no multiple of a block, and in either memory format, which the weight retains."""
    g = torch.Generator().manual_seed(1)
    start = torch.randn(24, 37, 3, 3, generator=g)
    formats = (torch.channels_last, torch.contiguous_format)
    weights = [torch.nn.Parameter(start.clone(memory_format=memory)) for memory in formats]
    options = {"betas": (0.8, 0.95), "eps": 1e-6, "weight_decay": 0.1}
    optimizers = [Adam8bit([weight], 0.01, **options) for weight in weights]
    w, m, v = start.double(), torch.zeros_like(start).double(), torch.zeros_like(start).double()
    for step in range(1, 13):
        gradient = torch.randn(start.shape, generator=g) + 0.5
        for weight, optimizer in zip(weights, optimizers, strict=True):
            weight.grad = gradient.clone()
            optimizer.step()
        m, v = 0.8 * m + 0.2 * gradient.double(), 0.95 * v + 0.05 * gradient.double() ** 2
        w = w * (1 - 0.01 * 0.1) - 0.01 * (m / (1 - 0.8**step)) / ((v / (1 - 0.95**step)).sqrt() + 1e-6)
        if step == 1:  # moments are quantized after a step
            torch.testing.assert_close(weights[0].detach().double(), w, rtol=1e-5, atol=1e-6)
    assert torch.equal(*weights)
    assert weights[0].is_contiguous(memory_format=torch.channels_last) and weights[1].is_contiguous()
    assert (weights[0].detach().double() - w).norm() < 0.02 * (w - start).norm()
    (state,) = optimizers[0].state.values()
    assert {name: (tuple(value.shape), value.dtype) for name, value in state.items()} == {
        "steps": ((), torch.float32),
        "exp_avg": ((24, 37, 3, 3), torch.uint8),
        "exp_avg_scale": ((24, 2), torch.float32),
        "exp_avg_sq": ((24, 37, 3, 3), torch.uint8),
        "exp_avg_sq_scale": ((24, 2), torch.float32),
    }


def test_a_parameter_updated_in_parts_is_updated_alike(monkeypatch):
    found = []
    for chunk in (2**24, 1000):
        monkeypatch.setattr("imagen.train.adam_8bit.CHUNK", chunk)
        g = torch.Generator().manual_seed(2)
        weight = torch.nn.Parameter(torch.randn(50, 300, generator=g))
        optimizer = Adam8bit([weight], 0.01)
        for _ in range(3):
            weight.grad = torch.randn(50, 300, generator=g)
            optimizer.step()
        found.append((weight.detach(), *optimizer.state[weight].values()))
    assert all(torch.equal(*pair) for pair in zip(*found, strict=True))


def test_small_parameters_are_updated_as_by_adamw():
    found = []
    for state in ("float32", "int8"):
        torch.manual_seed(0)
        shapes = {"matrix": (63, 65), "vector": (5000,), "large": (64, 64)}
        parameters = {name: torch.nn.Parameter(torch.randn(shape)) for name, shape in shapes.items()}
        config = OptimConfig(state=state, lr=0.01, weight_decay=0.1)
        optimizer = build_optimizer(parameters.items(), config)
        for _ in range(4):
            for parameter in parameters.values():
                parameter.grad = torch.randn_like(parameter)
            optimizer.step()
        found.append(parameters)
    assert [type(part) for part in optimizer.optimizers] == [Adam8bit, torch.optim.AdamW]
    assert all(torch.equal(found[0][name], found[1][name]) for name in ("matrix", "vector"))
    assert not torch.equal(found[0]["large"], found[1]["large"])
    assert is_large(found[0]["large"]) and not is_large(found[0]["matrix"]) and not is_large(found[0]["vector"])
    with pytest.raises(ValueError, match="large matrices"):
        Adam8bit(found[0].values(), 0.01)


@pytest.mark.parametrize("names", [("large",), ("small",)])
def test_models_with_only_large_or_only_small_parameters(names):
    """Such as the factors of adapters."""
    shapes = {"large": (64, 64), "small": (8, 8)}
    parameters = {name: torch.nn.Parameter(torch.ones(shapes[name])) for name in names}
    optimizer = build_optimizer(parameters.items(), OptimConfig(state="int8", lr=0.5))
    (parameter,) = parameters.values()
    parameter.grad = torch.ones_like(parameter)
    optimizer.step(torch.tensor(1.0), torch.tensor(True))
    torch.testing.assert_close(parameter.detach(), torch.full_like(parameter, 0.5))


def test_the_state_of_another_optimizer_is_rejected():
    """torch would cast its moments to codes."""
    weight = torch.nn.Parameter(torch.ones(64, 64))
    other, optimizer = torch.optim.AdamW([weight], 0.1), Adam8bit([weight], 0.1)
    weight.grad = torch.ones_like(weight)
    other.step()
    with pytest.raises(ValueError, match="not the state of Adam8bit: it lacks exp_avg_scale, exp_avg_sq_scale, steps"):
        optimizer.load_state_dict(other.state_dict())
    optimizer.step()
    before = weight.detach().clone()
    copy = Adam8bit([weight], 0.1)
    copy.load_state_dict(optimizer.state_dict())
    optimizer.step()
    after = weight.detach().clone()
    with torch.no_grad():
        weight.copy_(before)
    copy.step()
    assert torch.equal(weight, after)


def test_nothing_changes_if_not_finite():
    """Neither before the first update nor after others; the clipping factor scales the gradient."""
    g = torch.Generator().manual_seed(3)
    weight = torch.nn.Parameter(torch.randn(40, 130, generator=g))
    other = torch.nn.Parameter(weight.detach().clone())
    skipping, plain = (Adam8bit([p], 0.01, weight_decay=0.1) for p in (weight, other))
    for step in range(6):
        gradient = torch.randn(40, 130, generator=g)
        if step % 2 == 0:
            before = [weight.detach().clone(), *(value.clone() for value in skipping.state[weight].values())]
            weight.grad = torch.where(gradient > 1, torch.nan, torch.where(gradient < -1, torch.inf, gradient))
            skipping.step(factor=torch.tensor(torch.nan), finite=torch.tensor(False))
            if step:
                after = [weight.detach(), *skipping.state[weight].values()]
                assert all(torch.equal(*pair) for pair in zip(before, after, strict=True))
            else:
                assert torch.equal(weight, other)
        else:
            weight.grad, other.grad = 2 * gradient, gradient.clone()
            skipping.step(factor=torch.tensor(0.5), finite=torch.tensor(True))
            plain.step()
            assert torch.equal(weight, other)
    assert int(skipping.state[weight]["steps"]) == int(plain.state[other]["steps"]) == 3


def test_a_small_network_learns_as_with_adamw():
    """After 300 steps of a regression, the loss is within 10 % of AdamW's."""
    losses = {}
    g = torch.Generator().manual_seed(4)
    x, teacher = torch.randn(512, 32, generator=g), torch.randn(32, 8, generator=g) / 32**0.5
    y = (x @ teacher).tanh()
    for state in ("float32", "int8"):
        torch.manual_seed(0)
        layers = (torch.nn.Linear(32, 128), torch.nn.SiLU(), torch.nn.Linear(128, 128), torch.nn.SiLU())
        network = torch.nn.Sequential(*layers, torch.nn.Linear(128, 8))
        optimizer = build_optimizer(network.named_parameters(), OptimConfig(state=state, lr=1e-3))
        for step in range(300):
            rows = torch.arange(64) + 64 * (step % 8)
            optimizer.zero_grad()
            (network(x[rows]) - y[rows]).square().mean().backward()
            optimizer.step()
        losses[state] = float((network(x) - y).square().mean().detach())
    assert losses["float32"] < 0.05 * float(y.square().mean())
    assert losses["int8"] == pytest.approx(losses["float32"], rel=0.1)


# --- checkpoints ---


def gradient_steps(sharded, first, last, *, load=None, save=None):
    """Run steps with given gradients on a U-Net, full or sharded over all ranks; return its full tensors by kind."""
    torch.manual_seed(0)
    unet = UNet(UNET)
    if sharded:
        permute_to_nhwc(unet)
        fully_shard(unet, mesh=init_device_mesh("cpu", (dist.get_world_size(),)))
        make_views(unet)
    else:
        unet.to(memory_format=torch.channels_last)
    optimizer = build_optimizer(named_weights(unet), INT8, permuted=permuted_weights(unet))
    if load is not None:
        create_optimizer_state(unet, optimizer)
        dcp.load(run_tensors(unet, {}, optimizer), checkpoint_id=load)
    stored = dict(permuted_weights(unet))
    for step in range(first, last + 1):
        g = torch.Generator().manual_seed(step)
        optimizer.set_learning_rate(1e-3)
        for _, weight in named_weights(unet):
            gradient = torch.randn(weight.shape, generator=g)
            parameter = stored.get(weight, weight)
            # In the memory format of the weight, as autograd's: torch's fused AdamW ignores strides.
            if weight in stored:
                gradient = gradient.permute(0, 2, 3, 1).contiguous()
            elif not sharded:
                gradient = torch.empty_like(weight, requires_grad=False).copy_(gradient)
            parameter.grad = distribute_like(parameter, gradient)
        optimizer.step()
        optimizer.zero_grad()
    tensors = run_tensors(unet, {}, optimizer)
    if save is not None:
        dcp.save(tensors, checkpoint_id=save)
    return {
        kind: {name: full_tensor(value).clone() for name, value in named.items()} for kind, named in tensors.items()
    }


def save_sharded(folder):
    gradient_steps(True, 1, 3, save=folder)


def resume_sharded(folder):
    return gradient_steps(True, 4, 6, load=folder)


def assert_equal_ranks(found, expected):
    """Compare weights and state: bit-equal with 8-bit state, to rounding with torch's fused AdamW."""
    codes = {name for name, value in expected["optimizer"].items() if value.dtype == torch.uint8}
    exact = {name.rpartition(".")[0] for name in codes}
    assert len(exact) == 9
    for kind, named in expected.items():
        assert found[kind].keys() == named.keys()
        for name, value in named.items():
            if name in exact or name.rpartition(".")[0] in exact:
                assert torch.equal(found[kind][name], value), f"{kind} {name}"
            else:
                torch.testing.assert_close(found[kind][name], value, rtol=1e-5, atol=1e-6)


def test_resumes_exactly_on_another_number_of_ranks(tmp_path):
    """From 2 ranks to 1 and 3, and from 1 to 3, with equal gradients."""
    expected = gradient_steps(False, 1, 6)
    run_on_ranks(2, save_sharded, tmp_path / "two")
    gradient_steps(False, 1, 3, save=tmp_path / "one")
    assert_equal_ranks(gradient_steps(False, 4, 6, load=tmp_path / "two"), expected)
    for folder in ("one", "two"):
        for found in run_on_ranks(3, resume_sharded, tmp_path / folder):
            assert_equal_ranks(found, expected)


def test_a_run_resumes_exactly(shards, tmp_path, rows):
    what = experiment(steps=8, optim=INT8)
    assert train_quietly(what, shards, tmp_path / "whole").finished
    assert train_quietly(what, shards, tmp_path / "parts", report=stopping_at(3)).step == 4
    assert train_quietly(what, shards, tmp_path / "parts").finished
    assert_same(last_checkpoint(tmp_path / "parts"), last_checkpoint(tmp_path / "whole"))
    assert rows(tmp_path / "parts") == rows(tmp_path / "whole")


def test_a_sharded_run_resumes_in_one_process(shards, tmp_path):
    """Losses agree to 0.1 %: ranks sum gradients in another order, and rounding can change a code."""
    whole = experiment(steps=6, log_every=1, gap_every=0, optim=replace(INT8, eps=1e-4))
    first = replace(whole, train=replace(whole.train, steps=3), parallel=ParallelConfig(shard=2))
    train_quietly(whole, shards, tmp_path / "alone")
    run_on_ranks(2, train_on_rank, first, shards, tmp_path / "both")
    train_quietly(whole, shards, tmp_path / "both")
    found, expected = ([row["loss"] for row in metrics(run)] for run in (tmp_path / "both", tmp_path / "alone"))
    assert len(found) == 6 and found == pytest.approx(expected, rel=1e-3)


# --- commands ---


def test_command_line_trains_and_resumes(shards, tmp_path, monkeypatch):
    monkeypatch.setitem(PRESETS, "toy", lambda: experiment(steps=4))
    command = ("train", "toy", "--data", shards, "--out", tmp_path, "--device", "cpu", "--optim.state", "int8")
    assert run_imagen(*command, "--train.steps", 2).code == 0
    again = run_imagen(*command)
    assert again.code == 0 and "resuming from step 2" in again.out
    state = last_checkpoint(tmp_path)["optimizer"]
    assert state["down.1.blocks.0.residual.conv1.weight.exp_avg_sq"].dtype == torch.uint8
    assert float(state["down.1.blocks.0.residual.conv1.weight.steps"]) == 4


@pytest.mark.parametrize("algorithm", ["adafactor", "muon"])
def test_other_algorithms_reject_it(algorithm, shards, tmp_path):
    with pytest.raises(UserError, match=f"optim.state is int8, but {algorithm} .* use optim.algorithm adamw or adam"):
        OptimConfig(algorithm=algorithm, state="int8").check()
    fields = ("--optim.algorithm", algorithm, "--optim.state", "int8", "--device", "cpu")
    found = run_imagen("train", "debug_64", "--data", shards, "--out", tmp_path, *fields)
    assert found.code == 2 and found.err.count("\n") == 1 and "optim.state is int8" in found.err


@pytest.mark.parametrize("shard", [1, 2])
def test_plan_counts_two_bytes_per_parameter_and_the_scales(shard):
    """Of a rank's half of the rows if sharded; every shape has an even number of rows, except the output's 3."""
    what = replace(experiment(optim=INT8), parallel=ParallelConfig(shard=shard))
    with DryRun(what, shard, dtype=None, gpu=False) as dry_run:
        held = dry_run.held["optimizer"]
    expected = 0
    for parameter in UNet(UNET).parameters():
        rows = -(-len(parameter) // shard)
        elements = parameter[0].numel()
        if is_large(parameter):
            expected += rows * (2 * elements + 2 * 4 * -(-elements // 256)) + 4
        else:
            expected += rows * elements * 8 + 4
    assert held == expected
