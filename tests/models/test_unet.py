"""Compare the U-Net with hand-written references, and check properties that other code relies on."""

import dataclasses
import math

import pytest
import torch
from torch import Tensor, nn
from unets import ADDED, DEEPFLOYD, EFFICIENT, GUIDED, STRUCTURES, UNCONDITIONAL

from imagen.errors import UserError
from imagen.models.config import UNetConfig
from imagen.models.layers import Attention, ResBlock, TextPooling, TokenGroupNorm, attend, sinusoid
from imagen.models.text_cache import TextCachingUNet
from imagen.models.unet import UNet


def randomized_unet(config: UNetConfig) -> UNet:
    """Return a U-Net without zero-initialised layers."""
    torch.manual_seed(0)
    unet = UNet(config).double().eval()
    for parameter in unet.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.1)
    return unet


def inputs(config: UNetConfig, batch: int = 2, height: int = 16, width: int = 16, tokens: int = 5) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    values = {"x": normal(batch, 3, height, width), "noise": torch.linspace(10, 900, batch, dtype=torch.float64)}
    if config.text_width:
        values["text"] = normal(batch, tokens, config.text_width)
        values["text_mask"] = torch.ones(batch, tokens, dtype=torch.bool)
    if config.low_res:
        values["low_res"] = normal(batch, 3, height, width)
        values["low_res_noise"] = torch.linspace(500, 20, batch, dtype=torch.float64)
    return values


def run(unet: UNet, values: dict[str, Tensor]) -> Tensor:
    values = dict(values)
    return unet(values.pop("x"), values.pop("noise"), **values)


@pytest.mark.parametrize("config", STRUCTURES.values(), ids=STRUCTURES.keys())
class TestEveryStructure:
    def test_the_initial_output_is_zero(self, config: UNetConfig) -> None:
        torch.manual_seed(0)
        values = {key: value.float() if value.is_floating_point() else value for key, value in inputs(config).items()}
        assert not run(UNet(config), values).any()

    def test_the_output_depends_on_every_parameter_and_input(self, config: UNetConfig) -> None:
        unet, values = randomized_unet(config), inputs(config)
        for value in values.values():
            if value.is_floating_point():
                value.requires_grad_()
        run(unet, values).square().sum().backward()
        # A bias before a group norm of one channel per group, or added to all keys, would have no effect.
        silent = [name for name, p in unet.named_parameters() if p.grad is None or not p.grad.any()]
        assert silent == []
        assert all(v.grad is not None and v.grad.any() for v in values.values() if v.is_floating_point())

    def test_images_are_not_mixed(self, config: UNetConfig) -> None:
        unet, values = randomized_unet(config), inputs(config, batch=3)
        together = run(unet, values)
        alone = run(unet, {key: value[1:2] for key, value in values.items()})
        torch.testing.assert_close(together[1:2], alone)

    def test_images_need_not_be_square(self, config: UNetConfig) -> None:
        values = inputs(config, height=8, width=24)
        assert run(randomized_unet(config), values).shape == values["x"].shape

    def test_sides_that_are_no_multiple_of_the_stride_are_rejected(self, config: UNetConfig) -> None:
        side = config.total_stride + 1
        with pytest.raises(UserError, match=f"divisible by {config.total_stride}, not {side}x{side}"):
            run(randomized_unet(config), inputs(config, height=side, width=side))

    def test_learned_variance_doubles_the_channels(self, config: UNetConfig) -> None:
        unet = randomized_unet(dataclasses.replace(config, learned_variance=True))
        assert run(unet, inputs(config)).shape == (2, 6, 16, 16)

    def test_the_output_does_not_depend_on_text_padding(self, config: UNetConfig) -> None:
        if not config.text_width:
            pytest.skip("this structure takes no text")
        unet, values = randomized_unet(config), inputs(config)
        padded = dict(values)
        padded["text"] = torch.cat([values["text"], torch.full((2, 3, config.text_width), 1e3, dtype=torch.float64)], 1)
        padded["text_mask"] = torch.cat([values["text_mask"], torch.zeros(2, 3, dtype=torch.bool)], 1)
        torch.testing.assert_close(run(unet, padded), run(unet, values))
        values["text_mask"] = None  # equivalent to all True
        torch.testing.assert_close(run(unet, values), run(unet, padded))


@pytest.mark.parametrize("config", [GUIDED, ADDED, DEEPFLOYD], ids=["guided", "efficient", "deepfloyd"])
def test_cached_text_gives_the_same_output(config: UNetConfig) -> None:
    unet, values = randomized_unet(config), inputs(config)
    values["text_mask"][0, 3:] = False
    expected = run(unet, values)
    once = TextCachingUNet(unet)
    torch.testing.assert_close(run(once, values), expected, rtol=0, atol=0)
    read = []
    for layer in unet.modules():
        if layer is unet.text_pooling or getattr(layer, "attends_to_text", False):
            original = layer.forward if layer is unet.text_pooling else layer.keys_and_values
            name = "forward" if layer is unet.text_pooling else "keys_and_values"
            setattr(layer, name, lambda *args, original=original: read.append(1) or original(*args))
    torch.testing.assert_close(run(once, values), expected, rtol=0, atol=0)
    assert not read
    other = values | {"text": values["text"].flip(0)}  # another tensor is another text
    torch.testing.assert_close(run(once, other), run(unet, other), rtol=0, atol=0)
    assert read


def test_total_stride_is_the_product_of_strides() -> None:
    assert [c.total_stride for c in STRUCTURES.values()] == [2, 4, 2, 4, 4, 2, 4]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"levels": ()}, "at least one level"),
        ({"text_width": None}, "level 1 attends to text"),
        ({"head_channels": 48}, "64 channels are not divisible by head_channels 48"),
        ({"skip": "add"}, "'guided' concatenates"),
        ({"pooling_heads": 5}, "text_width 24 is not divisible by pooling_heads 5"),
        ({"text_width": None, "levels": UNCONDITIONAL.levels, "middle_attention": "cross"}, "the middle attends"),
    ],
)
def test_invalid_structures_are_rejected(changes: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        dataclasses.replace(GUIDED, **changes)


def test_missing_conditions_are_errors() -> None:
    values = inputs(EFFICIENT)
    with pytest.raises(ValueError, match="text"):
        run(randomized_unet(EFFICIENT), {k: v for k, v in values.items() if not k.startswith("text")})
    with pytest.raises(ValueError, match="low-resolution"):
        run(randomized_unet(EFFICIENT), {k: v for k, v in values.items() if not k.startswith("low")})


def test_the_sinusoidal_embedding_equals_its_definition() -> None:
    features = sinusoid(torch.tensor([0.0, 7.0]), 8)
    frequencies = [10_000 ** (-i / 4) for i in range(4)]
    expected = [[1.0] * 4 + [0.0] * 4, [f(7 * w) for f in (math.cos, math.sin) for w in frequencies]]
    torch.testing.assert_close(features, torch.tensor(expected))


def softmax_attention(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """Compute attention of q [N, C] to k, v [M, C], head by head, by the definition."""
    outputs = []
    for q_h, k_h, v_h in zip(q.chunk(heads, 1), k.chunk(heads, 1), v.chunk(heads, 1), strict=True):
        outputs.append((q_h @ k_h.T / q_h.shape[1] ** 0.5).softmax(1) @ v_h)
    return torch.cat(outputs, 1)


@pytest.mark.parametrize("kind", ["self", "cross", "fused"])
def test_attention_is_softmax_over_pixels_and_text(kind: str) -> None:
    torch.manual_seed(0)
    layer = Attention(32, kind, context_width=12, head_channels=8, groups=4).double()
    nn.init.normal_(layer.to_out.weight)
    x, context, length = torch.randn(2, 32, 3, 4).double(), torch.randn(2, 6, 12).double(), [4, 6]
    mask = torch.arange(6) < torch.tensor(length)[:, None]
    out = layer(x, context, mask)
    for b in range(2):
        pixels = layer.norm(x)[b].flatten(1).T
        keys, values = [], []
        if kind != "cross":
            keys, values = [layer.to_k(pixels)], [layer.to_v(pixels)]
        if kind != "self":
            tokens = layer.context_norm(context[b, : length[b]])
            keys, values = [*keys, layer.context_k(tokens)], [*values, layer.context_v(tokens)]
        attended = softmax_attention(layer.to_q(pixels), torch.cat(keys), torch.cat(values), heads=4)
        expected = x[b] + layer.to_out(attended).T.reshape(32, 3, 4)
        torch.testing.assert_close(out[b], expected)


def test_group_norm_of_text_excludes_padding() -> None:
    torch.manual_seed(0)
    norm = TokenGroupNorm(4, 24).double()
    nn.init.normal_(norm.weight), nn.init.normal_(norm.bias)
    text, length = torch.randn(2, 6, 24).double(), [4, 6]
    out = norm(text, torch.arange(6) < torch.tensor(length)[:, None])
    for b in range(2):
        expected = nn.functional.group_norm(text[b : b + 1, : length[b]].mT, 4, norm.weight, norm.bias).mT
        torch.testing.assert_close(out[b : b + 1, : length[b]], expected)
        torch.testing.assert_close(norm(text[b : b + 1, : length[b]]), expected)


def test_bfloat16_training_attends_as_evaluation_does() -> None:
    """Small attention in bfloat16 has another implementation with gradients than without."""
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 4, length, 16, dtype=torch.bfloat16) for length in (12, 20, 20))
    mask = (torch.arange(20) < torch.tensor([[13], [20]]))[:, None, None]
    expected = nn.functional.scaled_dot_product_attention(q.double(), k.double(), v.double(), attn_mask=mask)
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            torch.testing.assert_close(attend(q, k, v, mask).double(), expected, rtol=0.02, atol=0.02)


def test_text_pooling_is_attention_of_the_mean_token() -> None:
    torch.manual_seed(0)
    assert [TextPooling(width, 4).heads for width in (8, 64, 200, 384, 4096)] == [1, 1, 2, 6, 64]
    pooling = TextPooling(128, 10).double()
    text, length = torch.randn(2, 7, 128).double(), [3, 7]
    pooled = pooling(text, torch.arange(7) < torch.tensor(length)[:, None])
    for b in range(2):
        tokens = pooling.norm_in(text[b, : length[b]])
        query = tokens.mean(0, keepdim=True) + pooling.position
        tokens = torch.cat([query, tokens])
        attended = softmax_attention(pooling.to_q(query), pooling.to_k(tokens), pooling.to_v(tokens), heads=2)
        torch.testing.assert_close(pooled[b], pooling.norm_out(pooling.to_out(attended))[0])


def test_residual_block_scales_and_shifts_its_second_norm() -> None:
    torch.manual_seed(0)
    block = ResBlock(8, 16, embedding_width=6, groups=4, resample=nn.AvgPool2d(2)).double()
    nn.init.normal_(block.conv2.weight)
    x, embedding = torch.randn(2, 8, 4, 4).double(), torch.randn(2, 6).double()
    scale, shift = block.modulation(embedding)[..., None, None].chunk(2, 1)
    h = nn.functional.avg_pool2d(nn.functional.silu(block.norm1(x)), 2)
    h = block.norm2(block.conv1(h)) * (1 + scale) + shift
    expected = block.shortcut(nn.functional.avg_pool2d(x, 2)) + block.conv2(nn.functional.silu(h))
    torch.testing.assert_close(block(x, embedding), expected)
