"""Compare 8-bit weights with exact rounding, and embeddings with those of the original encoder."""

import torch
from torch import nn

from imagen.text.config import TextConfig
from imagen.text.encoder import load_text_encoder
from imagen.text.int8 import Int8Linear, quantize_int8

COLOURS = ("red", "blue", "teal", "gray")
CAPTIONS = [f"a small {name} on a {colour} background" for name in ("horse", "bus", "pear") for colour in COLOURS]


def test_weights_are_rounded_to_the_nearest_level():
    torch.manual_seed(0)
    linear = nn.Linear(64, 8)
    linear.weight.data[3] *= 100  # each output has its own scale
    linear.weight.data[5] = 0
    layer, x = Int8Linear(linear), torch.randn(5, 64)
    assert layer.weight.dtype == torch.int8
    step = linear.weight.abs().amax(1, keepdim=True) / 127
    levels = layer.weight * layer.scale
    assert ((levels - linear.weight).abs() <= step / 2 * 1.001).all()
    torch.testing.assert_close(layer(x), x @ levels.T + linear.bias)
    assert layer(x.bfloat16()).dtype == torch.bfloat16


def test_embeddings_change_little():
    whole, small = (load_text_encoder(TextConfig()) for _ in range(2))
    quantize_int8(small.model)
    linear = sum(m.weight.numel() for m in whole.model.modules() if isinstance(m, nn.Linear))
    size = lambda model: sum(t.numel() * t.element_size() for t in model.state_dict().values())  # noqa: E731
    assert size(whole.model) - size(small.model) > 2.9 * linear
    worst = min(
        float(torch.cosine_similarity(a, b, dim=1).min())
        for a, b in zip(whole.encode(CAPTIONS), small.encode(CAPTIONS), strict=True)
    )
    print(f"cosine at least {worst:.5f}")
    assert 0.995 < worst < 1
