"""Compare schedules with their definitions: discrete betas for linear, closed forms for cosine."""

import math

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from imagen.diffusion.samplers import step_logsnrs
from imagen.diffusion.schedule import (
    DiscreteCosine,
    ScheduleConfig,
    alpha_sigma,
    build_label,
    build_schedule,
    diffuse,
    noise_label,
    step_times,
)
from imagen.errors import UserError

F64 = torch.float64


def discrete_logsnr(steps: int) -> torch.Tensor:
    """Return the log-SNR of DDPM with betas from 1e-4 to 0.02, refined from 1000 to `steps` steps."""
    betas = torch.linspace(1e-4, 0.02, steps, dtype=F64) * 1000 / steps
    return torch.cumprod(1 - betas, 0).logit()


def test_linear_is_the_limit_of_the_discrete_chain():
    schedule = build_schedule(ScheduleConfig(kind="linear"), 64)

    def error(steps: int) -> float:
        t = torch.arange(1, steps + 1, dtype=F64) / steps
        return float((schedule(t) - discrete_logsnr(steps))[steps // 100 :].abs().max())

    assert error(1000) < 0.1
    assert error(1000) / error(10_000) == pytest.approx(10, rel=0.1)  # first order in the step


@pytest.mark.parametrize("ends", [(-15.0, 15.0), (-9.0, 8.0), (-20.0, -9.0)])
def test_linear_log_snr_has_the_given_range(ends):
    schedule = build_schedule(ScheduleConfig(kind="linear", logsnr_min=ends[0], logsnr_max=ends[1]), 64)
    t = torch.linspace(0, 1, 1001, dtype=F64)
    logsnr = schedule(t)
    last = max(ends[0], -math.log(math.expm1(10.05)))  # its end at t = 1
    assert logsnr[[0, -1]].tolist() == pytest.approx([ends[1], last], abs=1e-9)
    assert (logsnr.diff() < 0).all()  # so that a sampler can take these steps
    # -log alpha^2 = 0.1 t' + 9.95 t'^2, and t' is affine in t.
    minus_log_alpha2 = torch.nn.functional.softplus(-logsnr)
    time = ((0.01 + 39.8 * minus_log_alpha2).sqrt() - 0.1) / 19.9
    torch.testing.assert_close(time, time[0] + t * (time[-1] - time[0]), rtol=0, atol=1e-12)


def test_cosine_closed_form_and_range():
    lo, hi = -12.0, 14.0
    schedule = build_schedule(ScheduleConfig(logsnr_min=lo, logsnr_max=hi), 64)
    t = torch.linspace(0, 1, 1001, dtype=F64)
    logsnr = schedule(t)
    assert logsnr[0].item() == pytest.approx(hi, abs=1e-9) and logsnr[-1].item() == pytest.approx(lo, abs=1e-9)
    assert (logsnr.diff() < 0).all()
    # alpha = cos(pi t' / 2) and t' is affine in t.
    alpha, sigma = alpha_sigma(logsnr)
    time = 2 / math.pi * torch.atan2(sigma, alpha)
    torch.testing.assert_close(time, time[0] + t * (time[-1] - time[0]), rtol=0, atol=1e-12)
    # The truncation is small: around the middle, the default range equals the plain cosine schedule.
    middle = torch.tensor([0.3, 0.5, 0.7], dtype=F64)
    plain = -2 * torch.log(torch.tan(math.pi * middle / 2))
    torch.testing.assert_close(build_schedule(ScheduleConfig(), 64)(middle), plain, rtol=0, atol=2e-3)


def test_shift_halves_the_signal_amplitude_at_twice_the_resolution():
    t = torch.linspace(0, 1, 11, dtype=F64)
    config = ScheduleConfig(shift_reference=64)
    plain = build_schedule(ScheduleConfig(), 64)(t)
    torch.testing.assert_close(build_schedule(config, 64)(t), plain)
    snr_ratio = (build_schedule(config, 128)(t) - plain).exp()
    torch.testing.assert_close(snr_ratio, torch.full_like(t, 1 / 4))


@pytest.mark.parametrize("kind", ["cosine", "linear"])
def test_float32_times_add_only_rounding_errors(kind):
    schedule = build_schedule(ScheduleConfig(kind=kind, shift_reference=64), 256)
    t = torch.rand(10_000, generator=torch.Generator().manual_seed(0))
    assert schedule(t).dtype == torch.float32
    torch.testing.assert_close(schedule(t).double(), schedule(t.double()), rtol=1e-6, atol=1e-6)


def test_alpha_sigma_shapes_and_diffuse():
    logsnr = torch.tensor([-15.0, 0.0, 15.0], dtype=F64)
    x0, eps = torch.randn(2, 3, 1, 2, 2, dtype=F64)
    alpha, sigma = alpha_sigma(logsnr, like=x0)
    assert alpha.shape == sigma.shape == (3, 1, 1, 1)
    torch.testing.assert_close(alpha**2 + sigma**2, torch.ones_like(alpha))
    torch.testing.assert_close((alpha**2 / sigma**2).log().flatten(), logsnr)
    torch.testing.assert_close(diffuse(x0, eps, logsnr)[1], (x0 + eps)[1] / math.sqrt(2))


def test_noise_label_is_the_time_of_the_cosine_schedule():
    t = torch.tensor([1e-4, 0.25, 0.5, 0.9, 0.9999], dtype=F64)
    torch.testing.assert_close(noise_label(-2 * torch.log(torch.tan(math.pi * t / 2))), 1000 * t)
    ends = noise_label(torch.tensor([-math.inf, -200.0, 200.0, math.inf]))
    assert ends.tolist() == pytest.approx([1000, 1000, 0, 0], abs=1e-3)


def test_an_invalid_range_is_a_user_error():
    unreachable = {"kind": "linear", "logsnr_min": -20.0, "logsnr_max": -12.0}
    for bad in ({"logsnr_min": 3.0, "logsnr_max": 2.0}, {"logsnr_max": math.inf}, {"shift_reference": 0}, unreachable):
        with pytest.raises(UserError, match="schedule"):
            ScheduleConfig(**bad)


DISCRETE = ScheduleConfig(kind="discrete_cosine")


def test_discrete_cosine_equals_improved_ddpm():
    """Compare with the betas of eq. 17 of 2102.09672."""

    def f(i: int) -> float:
        return math.cos((i / 1000 + 0.008) / 1.008 * math.pi / 2) ** 2

    alpha2, expected = 1.0, []
    for i in range(1000):
        alpha2 *= 1 - min(0.999, 1 - f(i + 1) / f(i))
        expected.append(math.log(alpha2 / (1 - alpha2)))
    n = torch.arange(1000, dtype=F64)
    schedule = build_schedule(DISCRETE, 64)
    torch.testing.assert_close(schedule(n / 1000), torch.tensor(expected, dtype=F64), rtol=1e-8, atol=1e-8)
    assert torch.equal(schedule((n + 0.9) / 1000), schedule(n / 1000))  # constant in between
    assert schedule(torch.ones(1, dtype=F64)) == schedule(torch.tensor([0.999], dtype=F64))
    assert schedule(torch.tensor([0.5])).dtype == torch.float32


def test_discrete_labels_are_step_numbers():
    n = torch.arange(1000.0)
    label = build_label(DISCRETE)
    assert torch.equal(label(build_schedule(DISCRETE, 64)(n / 1000).float()), n)  # the sampler's levels are float32
    assert label(torch.tensor([-math.inf, -40.0, 40.0, math.inf])).tolist() == [999, 999, 0, 0]
    assert build_label(ScheduleConfig()) is noise_label


@pytest.mark.parametrize("steps", [1, 3, 7, 27, 100, 333, 1000])
@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
def test_discrete_steps_equal_diffusers(spacing, steps):
    scheduler = pytest.importorskip("diffusers").DDPMScheduler(
        beta_schedule="squaredcos_cap_v2", timestep_spacing=spacing
    )
    scheduler.set_timesteps(steps)
    schedule = build_schedule(ScheduleConfig(kind="discrete_cosine", discrete_steps=spacing), 64)
    times = step_times(schedule, steps)
    assert (times[:-1] * 1000).round().tolist() == scheduler.timesteps.tolist() and times[-1] == 0
    levels = step_logsnrs(schedule, steps)
    assert levels.isinf().tolist() == [False] * steps + [True] and (levels.diff() > 0).all()
    assert build_label(DISCRETE)(levels[:-1].float()).tolist() == scheduler.timesteps.tolist()


def test_a_discrete_schedule_limits_the_steps():
    with pytest.raises(UserError, match="shift_reference"):
        ScheduleConfig(kind="discrete_cosine", shift_reference=64)
    with pytest.raises(UserError, match="stage 64: steps is 1001; its schedule is discrete and has 1000"):
        DISCRETE.check_steps("stage 64", 1001)
    ScheduleConfig().check_steps("stage 64", 1001)


def test_a_dry_run_on_fake_tensors_leaves_the_discrete_schedule_as_it_was() -> None:
    """Tables are cached: a fake one must not be returned later, nor a real one in the dry run."""
    t = torch.linspace(0, 1, 9)
    for _ in range(2):
        with FakeTensorMode():
            assert DiscreteCosine().label(DiscreteCosine()(torch.linspace(0, 1, 9))).shape == (9,)
        logsnr = DiscreteCosine()(t)
        assert not isinstance(logsnr, FakeTensor)
        assert DiscreteCosine().label(logsnr).tolist() == [0, 125, 250, 375, 500, 625, 750, 875, 999]
