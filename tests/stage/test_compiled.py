"""Test compiled sampler steps: one graph per kind of step, and the same images as without compilation."""

from dataclasses import replace

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from imagen.diffusion.guidance import Estimate, batch_logsnr
from imagen.diffusion.samplers import create_sampler, sampler_names
from imagen.diffusion.schedule import ScheduleConfig, bind_label, build_label
from imagen.models.config import Level, UNetConfig
from imagen.models.unet import UNet
from imagen.stage.compiled import CompiledSteps
from imagen.stage.config import SamplingConfig, StageConfig
from imagen.stage.editing import Edit
from imagen.stage.sampling import Stage

# One block of each kind: tracing takes time per block, and tests/models/test_graphs.py traces all of them.
SMALL = UNetConfig(
    levels=(Level(channels=32, blocks=1, attention="fused"),),
    middle=False,
    text_width=24,
    context_width=16,
    time_width=48,
    head_channels=32,
)
BASE = StageConfig(resolution=16, unet=SMALL)
UPSAMPLING = StageConfig(
    resolution=16,
    unet=replace(SMALL, low_res=True, learned_variance=True),
    low_resolution=8,
    detail_std=0.2,
    schedule=ScheduleConfig(kind="discrete_cosine"),
)
# Number of graphs per sampler. The first step of dpmpp_2m_sde has no history, the last one no noise. A step of heun
# has two evaluations; the last step has one, with the same arithmetic as the first evaluation of other steps.
KINDS = {"ddpm": 2, "ddim": 2, "dpmpp_2m": 2, "dpmpp_2m_sde": 3, "heun": 2}


@pytest.fixture(autouse=True)
def reset_dynamo():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def random_stage(config: StageConfig) -> Stage:
    torch.manual_seed(0)
    unet = UNet(config.unet).eval().requires_grad_(False)
    for parameter in unet.parameters():
        parameter.add_(0.05 * torch.randn_like(parameter))
    return Stage(config, unet)


def sampled(stage: Stage, settings: SamplingConfig, seed: int = 0, **options) -> tuple[torch.Tensor, list]:
    """Return two images and the arguments of the callback."""
    g = torch.Generator().manual_seed(seed)
    given = []
    if stage.config.low_resolution is not None:
        options["low_BChw"] = torch.randint(0, 256, (2, 3, 8, 8), generator=g, dtype=torch.uint8)
    images = stage.sample(
        [seed, seed + 1],
        size=(16, 16),
        settings=settings,
        texts=[torch.randn(length, 24, generator=g) for length in (5, 3)],
        unconditional=torch.zeros(1, 24),
        text_length=7,
        precision="fp32",
        on_step=lambda *arguments: given.append(arguments),
        **options,
    )
    return images, given


def count_graphs(stage: Stage) -> CompileCounterWithBackend:
    counter = CompileCounterWithBackend("eager")  # aot_eager takes longer and adds no graph breaks
    stage.compiled = {"backend": counter}
    return counter


def assert_same(found, expected):
    (images, steps), (other, other_steps) = found, expected
    assert (images.int() - other.int()).abs().max() <= 1
    assert [step[:2] for step in steps] == [step[:2] for step in other_steps]
    for one, two in zip(steps, other_steps, strict=True):
        torch.testing.assert_close(one[2:], two[2:], rtol=0, atol=1e-4)


@pytest.mark.parametrize("sampler", sampler_names())
def test_steps_compile_to_few_graphs_and_give_the_same_images(sampler):
    """Other numbers of steps, prompts, seeds and noise levels do not recompile; the graph includes guidance."""
    stage = random_stage(BASE)
    settings = SamplingConfig(sampler=sampler, steps=5, eta=0.5, guidance_rescale=0.3)
    requests = [(settings, 0), (replace(settings, steps=4), 5)]
    expected = [sampled(stage, *request) for request in requests]
    counter = count_graphs(stage)
    for request, plain in zip(requests, expected, strict=True):
        assert_same(sampled(stage, *request), plain)
        assert counter.frame_count == KINDS[sampler]


def test_super_resolution_with_detail_learned_variance_and_an_interval_is_compiled():
    stage = random_stage(UPSAMPLING)
    settings = SamplingConfig(sampler="ddpm", steps=5, guidance_interval=(-5.0, 1.0), threshold="static")
    expected = sampled(stage, settings)
    counter = count_graphs(stage)
    assert_same(sampled(stage, settings), expected)
    assert_same(sampled(stage, settings), expected)
    assert counter.frame_count == 3  # guided; not guided; not guided and last


def test_inpainting_and_image_to_image_are_compiled():
    stage, settings = random_stage(BASE), SamplingConfig(steps=5)
    mask = torch.zeros(2, 1, 16, 16)
    mask[..., 8:] = 1
    edit = Edit(picture_BCHW=torch.rand(2, 3, 16, 16) * 2 - 1, strength=0.7, mask_B1HW=mask)
    expected = sampled(stage, settings, edit=edit)
    count_graphs(stage)
    assert_same(sampled(stage, settings, edit=edit), expected)


def test_a_sampler_that_branches_on_values_is_not_traced():
    def run(denoise, x, logsnrs, *, noise, on_step):
        x0 = denoise(x, batch_logsnr(x, 0.0)).x0
        return x0 if x0.abs().max() > 1 else x

    assert CompiledSteps({}).trace(run, [0.0, 1.0], False) is None


def test_a_sampler_that_calls_functions_of_torch_is_traced():
    def run(denoise, x, logsnrs, *, noise, on_step):
        for logsnr in logsnrs:
            x0 = denoise(x, batch_logsnr(x, logsnr)).x0
            x = torch.lerp(x, x0.clamp(-1, 1), 0.3 + logsnr) + 0.1 * noise().sin()
        return x

    def denoise(x, logsnr_B):
        return Estimate(x.tanh() * logsnr_B.reshape(-1, 1, 1, 1))

    def noise():
        g = torch.Generator().manual_seed(0)
        return lambda: torch.randn(2, 3, 4, 4, generator=g)

    x, levels = torch.randn(2, 3, 4, 4), [0.1, 0.2, 0.3]
    counter = CompileCounterWithBackend("eager")
    steps = CompiledSteps({"backend": counter})
    traced = steps.trace(run, levels, False)
    found = steps.run(traced, lambda logsnr: denoise, x, noise=noise())
    torch.testing.assert_close(found, run(denoise, x, levels, noise=noise(), on_step=None))
    assert counter.frame_count == 1


def test_schedules_may_end_at_a_finite_log_snr():
    stage, levels = random_stage(BASE), [-1.0, 0.0, 1.0]

    def denoise(x, logsnr_B):
        return Estimate(stage.unet(x, logsnr_B, text=torch.ones(1, 1, 24)))

    run = create_sampler("dpmpp_2m").sample
    x = torch.randn(1, 3, 16, 16)
    steps = CompiledSteps({"backend": "eager"})
    found = steps.run(steps.trace(run, levels, False), lambda logsnr: denoise, x, noise=lambda: x)
    with torch.no_grad():
        torch.testing.assert_close(found, run(denoise, x, levels, noise=lambda: x))


@pytest.mark.parametrize("kind", ["cosine", "discrete_cosine"])
def test_bound_labels_equal_the_labels(kind):
    config, logsnrs = ScheduleConfig(kind=kind), torch.linspace(-20, 15, 999)
    assert torch.equal(bind_label(config, torch.device("cpu"))(logsnrs), build_label(config)(logsnrs))
