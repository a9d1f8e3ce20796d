import pytest
import torch
from ranks import run_on_ranks
from sharding import make_model, weights
from torch import nn

from imagen.train.ema import Ema, PowerEma, build_emas
from imagen.train.sharded import distribute_like, full_tensor


def small_model():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))  # batch norm: a model with buffers
    return model.to(memory_format=torch.channels_last)


def walk(model):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter))


def test_average_equals_float64():
    model = small_model()
    ema = Ema(model, decay=0.95)
    expected = {name: p.detach().double() for name, p in model.named_parameters()}
    for step in range(1, 301):
        walk(model)
        ema.update(model, step)
        decay = min(0.95, (1 + step) / (10 + step))
        for name, parameter in model.named_parameters():
            expected[name] = decay * expected[name] + (1 - decay) * parameter.detach().double()
    for name, average in ema.weights.items():
        torch.testing.assert_close(average.double(), expected[name], rtol=1e-6, atol=1e-6)


def test_decay_warms_up_to_its_limit():
    ema = Ema(small_model(), decay=0.999)
    assert ema.decay_at(1) == 2 / 11
    assert ema.decay_at(8980) < 0.999 == ema.decay_at(8990) == ema.decay_at(10**6)


def test_applied_weights_are_restored_after_an_error():
    model = small_model()
    ema = Ema(model, decay=0.9)
    walk(model)
    raw = {name: p.detach().clone() for name, p in model.named_parameters()}
    average = {name: w.clone() for name, w in ema.weights.items()}
    try:
        with ema.applied_to(model):
            for name, parameter in model.named_parameters():
                assert torch.equal(parameter, average[name])
            raise KeyError
    except KeyError:
        pass
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, raw[name])
        assert torch.equal(ema.weights[name], average[name])


def test_export_is_complete_and_a_copy():
    model = small_model()
    ema = Ema(model, decay=0.9)
    walk(model)
    state = ema.export(model)
    assert state.keys() == model.state_dict().keys()
    assert torch.equal(state["0.weight"], ema.weights["0.weight"]) and state["0.weight"].is_contiguous()
    assert not torch.equal(state["0.weight"], model[0].weight)
    assert state["1.num_batches_tracked"].dtype == torch.int64
    state["0.weight"].zero_()
    assert ema.weights["0.weight"].abs().sum() > 0
    small_model().load_state_dict(state)


def test_power_ema_equals_its_weighted_sum():
    """The weight of a step is the integral of t^gamma over the step."""
    model = small_model()
    ema, gamma, total = PowerEma(model, 0.1), 6.9372, 200
    expected = {name: torch.zeros_like(p).double() for name, p in model.named_parameters()}
    for step in range(1, total + 1):
        walk(model)
        ema.update(model, step)
        counts = (step / total) ** (gamma + 1) - ((step - 1) / total) ** (gamma + 1)
        for name, parameter in model.named_parameters():
            expected[name] += counts * parameter.detach().double()
    for name, average in ema.weights.items():
        torch.testing.assert_close(average.double(), expected[name], rtol=1e-4, atol=1e-4)


def test_several_emas_by_name():
    model = small_model()
    kept = build_emas(model, 0.9999, decays=(0.999, 0.9), sigma_rels=(0.05, 0.1))
    assert list(kept) == ["ema", "decay-0.999", "decay-0.9", "sigma_rel-0.05", "sigma_rel-0.1"]
    assert kept["ema"].decay_at(10**6) == 0.9999 and kept["decay-0.9"].decay_at(10**6) == 0.9
    assert kept["sigma_rel-0.05"].decay_at(1) == 0 and kept["sigma_rel-0.05"].decay_at(1000) == pytest.approx(
        0.999 ** (16.9722 + 1)
    )


# Sharded models

X = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(7))


def averaged(layout):
    """Return the EMAs after 5 steps, the outputs for X with them, the model's weights, and the result of `export`."""
    model = make_model(layout)
    kept = {"ema": Ema(model, 0.7), "power": PowerEma(model, 0.2)}
    for step in range(1, 6):
        generator = torch.Generator().manual_seed(step)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(distribute_like(parameter, torch.randn(parameter.shape, generator=generator)))
            if step == 3:
                model(X)  # leaves gathered parameters behind
        for ema in kept.values():
            ema.update(model, step)
    found = {}
    for name, ema in kept.items():
        with ema.applied_to(model), torch.no_grad():
            found[f"{name} output"] = model(X)
        found |= {f"{name} {key}": full_tensor(value) for key, value in ema.weights.items()}
    found |= weights(model)
    exported = kept["ema"].export(model)
    fresh = Ema(model, 0.7)
    fresh.load({name: full_tensor(value) for name, value in kept["ema"].weights.items()})
    assert all(
        torch.equal(full_tensor(fresh.weights[key]), full_tensor(value)) for key, value in kept["ema"].weights.items()
    )
    fresh.load(kept["power"].weights)
    assert all(
        torch.equal(full_tensor(fresh.weights[key]), full_tensor(value)) for key, value in kept["power"].weights.items()
    )
    return found, exported


def averaged_in_both():
    return [averaged(layout) for layout in ("fsdp", "hsdp")]


def test_sharded_model_has_the_same_emas():
    expected, whole_export = averaged("plain")
    assert whole_export.keys() == make_model().state_dict().keys()
    for rank, results in enumerate(run_on_ranks(4, averaged_in_both)):
        for found, exported in results:
            assert found.keys() == expected.keys()
            for name, value in expected.items():
                torch.testing.assert_close(found[name], value, rtol=1e-6, atol=1e-6 if "output" not in name else 1e-4)
            assert exported.keys() == (whole_export.keys() if rank == 0 else set())
            assert all(torch.equal(value, whole_export[name]) for name, value in exported.items())
