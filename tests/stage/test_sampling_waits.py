"""Check that a sampler step never synchronises with the device and launches few operations."""

from dataclasses import replace

import pytest
import torch
from device_sync import META, NoSyncMode, meta_device_as_gpu
from published import I_M

from imagen import kernels
from imagen.convert.structure import read_unet_config
from imagen.diffusion.noise import PictureNoise
from imagen.diffusion.objective import ObjectiveConfig
from imagen.diffusion.samplers import sampler_names, step_logsnrs
from imagen.diffusion.schedule import ScheduleConfig, build_schedule
from imagen.models.config import Level, UNetConfig
from imagen.models.unet import UNet, cast_copy
from imagen.stage.config import SamplingConfig, StageConfig
from imagen.stage.denoiser import build_conditioning, build_denoiser, build_predict
from imagen.stage.network import Network

SMALL = UNetConfig(
    levels=(Level(channels=32, blocks=1, stride=1), Level(channels=64, blocks=1, attention="fused")),
    text_width=24,
    context_width=16,
    time_width=48,
    head_channels=32,
)
SMALLEST = replace(SMALL, levels=SMALL.levels[1:], middle=False)  # the networks of IF have all kinds of blocks


def steps_on_meta(config: StageConfig, settings: SamplingConfig, tokens: int = 7) -> NoSyncMode:
    """Run guided sampler steps, without the first one, in NoSyncMode; return the mode."""
    with torch.device("meta"):
        unet = UNet(config.unet).requires_grad_(False)
    shape = (1, 3, config.resolution, config.resolution)
    network, dtype = Network(unet).to_device(META, torch.bfloat16)
    assert dtype is None and next(network.parameters()).dtype == torch.bfloat16
    texts, low_res = [torch.zeros(tokens, config.unet.text_width)], None
    if config.low_resolution is not None:
        low_res = torch.zeros(1, 3, config.low_resolution, config.low_resolution, dtype=torch.uint8)
    conditioning = build_conditioning(
        config,
        settings,
        size=shape[2:],
        device=META,
        texts=texts,
        negatives=texts,
        low_BChw=low_res,
        augmentation_eps=lambda: torch.zeros(shape, device=META),
    )
    denoise = build_denoiser(build_predict(network, dtype), config, settings, conditioning)
    noise = PictureNoise([0], shape[1:], META, stream=2)
    x = noise()
    levels = step_logsnrs(build_schedule(config.schedule, config.resolution), settings.steps)
    sampler = settings.build_sampler()
    with torch.no_grad():
        sampler.sample(denoise, x, levels[:2], noise=noise)  # the first step caches the text
    with NoSyncMode() as mode, torch.no_grad():
        sampler.sample(denoise, x, levels[1:4], noise=noise)
    return mode


@pytest.mark.parametrize("sampler", sampler_names())
@pytest.mark.parametrize("kind", ["cosine", "discrete_cosine"])
@pytest.mark.parametrize("interval", [None, (-100.0, 0.0)])
def test_a_sampler_step_never_synchronises(sampler, kind, interval):
    settings = SamplingConfig(sampler=sampler, steps=8, guidance_interval=interval, eta=0.5, guidance_rescale=0.5)
    stage = StageConfig(resolution=16, unet=SMALLEST, schedule=ScheduleConfig(kind=kind))
    learned = replace(stage, unet=replace(SMALLEST, learned_variance=True))
    enlarging = replace(stage, unet=replace(SMALLEST, low_res=True), low_resolution=8, detail_std=0.2)
    with meta_device_as_gpu():
        for config in (stage, learned, enlarging):
            assert steps_on_meta(config, settings).operations > 50


def test_the_number_of_operations_per_evaluation_is_pinned():
    """For comparison: 1,581 with autocast and torch's norms, 970 in diffusers in bfloat16."""
    stage = StageConfig(
        resolution=64,
        unet=read_unet_config(I_M, "IF-I-M"),
        schedule=ScheduleConfig(kind="discrete_cosine"),
        objective=ObjectiveConfig(prediction="eps"),
        sampling=SamplingConfig(sampler="ddpm", steps=100, guidance=7.0, percentile=0.95, max_scale=1.5),
    )
    with meta_device_as_gpu():
        mode = steps_on_meta(stage, stage.sampling, tokens=77)
    print(mode.operations / 2, sorted(mode.names.items(), key=lambda item: -item[1])[:25])
    assert mode.operations / 2 <= 850


def test_a_bfloat16_network_is_as_accurate_as_one_under_autocast(monkeypatch):
    """Compare with float32. Our fused norms compute statistics in float32."""
    torch.manual_seed(0)
    unet = UNet(SMALL).eval()
    with torch.no_grad():
        for parameter in unet.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
        x, label, text = torch.randn(4, 3, 16, 16), 1000 * torch.rand(4), torch.randn(4, 7, 24)
        exact = unet(x, label, text=text)
        with torch.autocast("cpu", torch.bfloat16):
            autocast = unet(x, label, text=text).float()
        monkeypatch.setattr(kernels, "uses_triton", lambda device: True)
        throughout = cast_copy(unet, torch.bfloat16)(x, label, text=text).float()
    error, most = (torch.linalg.vector_norm(found - exact) for found in (throughout, autocast))
    assert error < 1.5 * most < 0.05 * torch.linalg.vector_norm(exact)


def test_the_low_precision_copy_follows_its_weights():
    """The copy is updated if and only if the weights change."""
    unet = UNet(SMALL)
    network = Network(unet)
    first = network.low_precision(unet, torch.device("cpu"), torch.bfloat16)
    assert network.low_precision(unet, torch.device("cpu"), torch.bfloat16) is first
    with torch.no_grad():
        unet.conv_in.weight.add_(1)
    second = network.low_precision(unet, torch.device("cpu"), torch.bfloat16)
    assert second is not first and torch.equal(second.conv_in.weight, unet.conv_in.weight.bfloat16())
    assert unet.conv_in.weight.dtype == torch.float32
