import torch
from torch import nn

from imagen.train.ema import Ema


def small_model():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))  # batch norm: a model with buffers
    return model.to(memory_format=torch.channels_last)


def walk(model):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter))


def test_average_against_float64():
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


def test_applied_and_taken_back_even_after_an_error():
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


def test_export_is_whole_and_a_copy():
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
