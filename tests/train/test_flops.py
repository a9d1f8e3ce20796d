"""Test that counted FLOPs equal the sum over layers, and that the MFU is their ratio to the peak."""

from dataclasses import replace

import pytest
import torch
from toy import UNET, experiment

from imagen.data.loading.config import DataConfig
from imagen.errors import UserError
from imagen.gpus import identify_gpu
from imagen.models import layers
from imagen.models.unet import UNet
from imagen.train.experiment import check
from imagen.train.flops import build_mfu, image_flops, meta_unet, peak_flops
from imagen.train.ranks import Ranks

SR = experiment(unet=replace(UNET, low_res=True), low_resolution=8, data=DataConfig(crop=8))


def by_layer(what, tokens, monkeypatch):
    """Compute from layer shapes the FLOPs of a forward pass, and those of layers with inputs that need no gradient."""
    counts, products = {}, []

    def count(module, arguments, out):
        if isinstance(module, torch.nn.Conv2d):
            counts[module] = counts.get(module, 0) + 2 * out.numel() * module.in_channels * module.kernel_size[0] ** 2
        else:
            counts[module] = counts.get(module, 0) + 2 * out.numel() * module.in_features

    attend = layers.attend

    def counted(q, k, v, mask):
        products.append(4 * q.shape[1] * q.shape[2] * k.shape[2] * q.shape[3])
        return attend(q, k, v, mask)

    monkeypatch.setattr(layers, "attend", counted)
    unet = UNet(what.stage.unet)
    for module in unet.modules():
        if isinstance(module, torch.nn.Conv2d | torch.nn.Linear):
            module.register_forward_hook(count)
    side = what.data.crop or what.stage.resolution
    x, label, low = torch.zeros(1, 3, side, side), torch.zeros(1), {}
    ends = [unet.conv_in, unet.noise_embedding.layers[0], unet.text_projection]
    if unet.low_res_embedding is not None:
        low = {"low_res": x, "low_res_noise": label}
        ends.append(unet.low_res_embedding.layers[0])
    unet(x, label, text=torch.zeros(1, tokens, 8), **low)
    return sum(counts.values()) + sum(products), sum(counts[module] for module in ends)


@pytest.mark.parametrize("what", [experiment(), SR], ids=["base", "super-resolution, crop"])
@pytest.mark.parametrize("tokens", [1, 7])
def test_counts_equal_the_sum_over_layers(what, tokens, monkeypatch):
    forward, without_input = by_layer(what, tokens, monkeypatch)
    unet = meta_unet(what)
    assert image_flops(unet, what, tokens) == forward
    # The backward pass computes a product for the weights, and another for the input if it needs a gradient.
    assert image_flops(unet, what, tokens, backward=True) == 3 * forward - without_input


def test_mfu_is_needed_flops_over_peak_flops():
    what = experiment(peak_tflops=0.5)
    mfu = build_mfu(what, Ranks(world_size=4))
    for tokens in (1, 3, 10):  # 1 and 128 are counted, others interpolated
        needed = image_flops(meta_unet(what), what, tokens, backward=True)
        assert mfu(100.0, tokens) == pytest.approx(100 * needed / (4 * 0.5e12), rel=1e-9)
    bare = replace(UNET, text_width=None, levels=tuple(replace(level, attention="none") for level in UNET.levels))
    what = replace(experiment(unet=bare, peak_tflops=1), text=None)
    needed = image_flops(meta_unet(what), what, backward=True)
    assert build_mfu(what, Ranks())(10.0, 0) == pytest.approx(10 * needed / 1e12)


def test_gradients_of_frozen_weights_are_not_needed():
    what = experiment(peak_tflops=1)
    frozen = experiment(peak_tflops=1, freeze=("down.*",))
    assert build_mfu(frozen, Ranks())(10.0, 3) < 0.95 * build_mfu(what, Ranks())(10.0, 3)


def test_no_mfu_without_a_known_peak():
    assert build_mfu(experiment(), Ranks()) is None
    with pytest.raises(UserError, match=r"train\.peak_tflops is 0; it must be above 0"):
        check(experiment(peak_tflops=0))


@pytest.mark.parametrize(
    "name, bf16",
    [
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA H100 NVL", 835.5),
        ("NVIDIA H200", 989),
        ("NVIDIA GH200 480GB", 989),
        ("NVIDIA B200", 2250),
        ("NVIDIA GB200", 2500),
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA A100 80GB PCIe", 312),
        ("NVIDIA A10", 125),
        ("NVIDIA L40S", 362),
        ("NVIDIA L4", 121),
        ("NVIDIA H100 80GB HBM3 MIG 3g.40gb", None),
        ("NVIDIA A10G", None),
        ("Tesla T4", None),
    ],
)
def test_peak_by_device_name(name, bf16):
    gpu = identify_gpu(name)
    assert bf16 == (None if gpu is None else gpu.tflops)


def test_peak_depends_on_the_precision(monkeypatch):
    monkeypatch.setattr("torch.cuda.get_device_name", lambda device: "NVIDIA A100-SXM4-40GB")
    device = torch.device("cuda")
    assert peak_flops(device, experiment(precision="bf16")) == 312e12
    assert peak_flops(device, experiment(precision="fp32")) == 156e12
    assert peak_flops(device, experiment(precision="fp32", peak_tflops=19.5)) == 19.5e12
