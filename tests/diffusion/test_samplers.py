"""Compare samplers with exact solutions for Gaussian data.

If x0 ~ N(mu, s^2) then x_t ~ N(alpha mu, alpha^2 s^2 + sigma^2), and the best estimate of x0 is affine in x_t. Every
sampler is then an affine map of its initial x and its noise, which unit impulses measure exactly, without statistics.
"""

import math
from itertools import pairwise

import pytest
import torch

from imagen.diffusion.guidance import Estimate
from imagen.diffusion.noise import PictureNoise
from imagen.diffusion.samplers import create_sampler, sampler_names, step_logsnrs
from imagen.diffusion.schedule import ScheduleConfig, alpha_sigma, build_schedule
from imagen.errors import UserError


def sampler_function(name):
    """Return the sampler as a function, with its options as keywords."""

    def sampled(denoise, x, logsnrs, *, noise=None, on_step=None, **options):
        return create_sampler(name, options).sample(denoise, x, logsnrs, noise=noise, on_step=on_step)

    return sampled


ddim, ddpm, dpmpp_2m, dpmpp_2m_sde, heun = map(sampler_function, ("ddim", "ddpm", "dpmpp_2m", "dpmpp_2m_sde", "heun"))
F64 = torch.float64
MU = torch.tensor([0.3, -0.8, 0.0], dtype=F64)  # three distributions at once, one per column
S2 = torch.tensor([0.25, 0.01, 1.0], dtype=F64)


def best_denoiser(mu, s2):
    def denoise(x, logsnr_B):
        alpha, sigma = alpha_sigma(logsnr_B, like=x)
        return Estimate(mu + alpha * s2 / (alpha**2 * s2 + sigma**2) * (x - alpha * mu))

    return denoise


def marginal(logsnr, mu=MU, s2=S2):
    """Return the mean and variance of x_t."""
    alpha2 = torch.sigmoid(torch.as_tensor(logsnr, dtype=F64))
    return alpha2.sqrt() * mu, alpha2 * s2 + (1 - alpha2)


denoise = best_denoiser(MU, S2)


def exact_ode(x, logsnr_t, logsnr_s):
    """Solve the probability-flow ODE, which preserves (x - mean) / standard deviation."""
    (mean_t, var_t), (mean_s, var_s) = marginal(logsnr_t), marginal(logsnr_s)
    return mean_s + (var_s / var_t).sqrt() * (x - mean_t)


def mean_and_variance(sampler, logsnrs, denoise=denoise, start=marginal, **options):
    """Return the exact mean and variance of the output, and the number of noise calls.

    The initial x is from the marginal at logsnrs[0]. Row 0 of the batch starts from 0 and row 1 from 1. Row 2 + k gets
    a unit impulse as its k-th noise.
    """
    steps = len(logsnrs) - 1
    x = torch.zeros(2 + steps, 3, dtype=F64)
    x[1] = 1
    calls = 0

    def noise():
        nonlocal calls
        z = torch.zeros_like(x)
        z[2 + calls] = 1
        calls += 1
        return z

    out = sampler(denoise, x, logsnrs, noise=noise, **options)
    offset, gains = out[0], out[1:] - out[0]
    mean_0, var_0 = start(logsnrs[0])
    return offset + gains[0] * mean_0, gains[0] ** 2 * var_0 + (gains[1:] ** 2).sum(0), calls


STOCHASTIC = [
    (ddpm, {"gamma": 0.0}),
    (ddpm, {"gamma": 0.3}),
    (ddpm, {"gamma": 1.0}),
    (ddim, {"eta": 0.5}),
    (ddim, {"eta": 1.0}),
    (dpmpp_2m_sde, {}),
]


@pytest.mark.parametrize(("sampler", "options"), STOCHASTIC)
@pytest.mark.parametrize("kind", ["cosine", "linear"])
def test_stochastic_samplers_converge_to_the_data(sampler, options, kind):
    """On the default schedule, the mean is exact, and the error of the variance is about linear in the step size."""
    schedule = build_schedule(ScheduleConfig(kind=kind), 64)
    errors = []
    for steps in (250, 500, 1000):
        mean, variance, calls = mean_and_variance(sampler, step_logsnrs(schedule, steps), **options)
        assert calls == steps - 1  # the last step adds no noise
        torch.testing.assert_close(mean, MU, rtol=0, atol=1e-12)
        errors.append((variance / S2 - 1).abs())
    assert (errors[-1] < torch.tensor([0.02, 0.08, 0.01])).all()
    for coarse, fine in pairwise(errors):
        assert ((coarse > 1.6 * fine) | (coarse < 2e-3)).all()


def test_each_bound_of_the_variance_is_exact_for_its_data():
    """DDPM, section 3.2: for any number of steps, beta is exact for x0 ~ N(0, 1) and beta~ for a single point."""
    logsnrs = torch.tensor([-6.0, -2.0, 0.5, 1.0, 5.0], dtype=F64)
    for s2, gamma in ((torch.ones(3, dtype=F64), 1.0), (torch.zeros(3, dtype=F64), 0.0)):
        result = mean_and_variance(
            ddpm, logsnrs, best_denoiser(0 * MU, s2), lambda logsnr, s2=s2: marginal(logsnr, 0 * MU, s2), gamma=gamma
        )
        torch.testing.assert_close(result[:2], marginal(5.0, 0 * MU, s2), rtol=0, atol=1e-12)


@pytest.mark.parametrize(("sampler", "options"), STOCHASTIC)
def test_stochastic_samplers_converge_at_their_order(sampler, options):
    """With a finite last level and steps uniform in lambda, halving the step halves or quarters the error."""

    def error(steps):
        logsnrs = torch.linspace(-6, 6, steps + 1, dtype=F64)
        mean, variance, _ = mean_and_variance(sampler, logsnrs, **options)
        true_mean, true_variance = marginal(6.0)
        return (mean - true_mean).abs().max().item() + (variance - true_variance).abs().max().item()

    ratios = [error(n) / error(2 * n) for n in (200, 400)]
    assert ratios == pytest.approx([4, 4] if sampler is dpmpp_2m_sde else [2, 2], rel=0.1)


@pytest.mark.parametrize(("sampler", "order"), [(ddim, 1), (dpmpp_2m, 2), (heun, 2)])
def test_deterministic_samplers_converge_at_their_order(sampler, order):
    x = torch.tensor([[-1.5, 0.0, 0.7], [1.0, 1.0, -2.0]], dtype=F64)

    def error(logsnrs):
        return (sampler(denoise, x, logsnrs) - exact_ode(x, logsnrs[0], logsnrs[-1])).abs().max().item()

    even = [error(torch.linspace(-6, 6, steps + 1, dtype=F64)) for steps in (80, 160, 320)]
    assert [a / b for a, b in pairwise(even)] == pytest.approx([2**order] * 2, rel=0.1)
    # Steps of alternating length, 3 : 1.
    turns = [torch.tensor([3.0, 1.0], dtype=F64).repeat(steps // 2).cumsum(0) * 6 / steps for steps in (160, 320, 640)]
    uneven = [error(torch.cat([torch.zeros(1, dtype=F64), grid]) - 6) for grid in turns]
    assert [a / b for a, b in pairwise(uneven)] == pytest.approx([2**order] * 2, rel=0.1)


@pytest.mark.parametrize(("sampler", "order"), [(ddim, 1), (dpmpp_2m, 2), (heun, 2)])
def test_damping_equals_its_closed_form_for_gaussian_data(sampler, order):
    """Damping scales (x - mean) / standard deviation by ((s^2 + 1 / SNR_s) / (s^2 + 1 / SNR_t))^(d / 2)."""
    x = torch.tensor([[-1.5, 0.0, 0.7], [1.0, 1.0, -2.0]], dtype=F64)
    left = ((S2 + math.exp(-6)) / (S2 + math.exp(6))) ** (0.3 / 2)
    mean = marginal(6.0)[0]
    exact = mean + left * (exact_ode(x, torch.tensor(-6.0), torch.tensor(6.0)) - mean)

    grids = [torch.linspace(-6, 6, steps + 1, dtype=F64) for steps in (80, 160, 320)]
    errors = [(sampler(denoise, x, grid, damping=0.3) - exact).abs().max().item() for grid in grids]
    assert [a / b for a, b in pairwise(errors)] == pytest.approx([2**order] * 2, rel=0.1)
    # A last step to a clean image is exact and finite, with and without damping.
    ends = [sampler(denoise, x, [-6.0, 2.0, math.inf], damping=damping) for damping in (0.0, 0.3)]
    assert all(end.isfinite().all() for end in ends) and not torch.equal(*ends)


def test_dpmpp_2m_is_algorithm_2_of_its_paper():
    """Compare with a transcription on uneven steps, since a swapped h_{i-1} / h_i would also be second order."""
    logsnrs = torch.tensor([-3.0, -1.0, -0.5, 2.0, 3.0], dtype=F64)
    lam, (alpha, sigma) = logsnrs / 2, alpha_sigma(logsnrs)
    h = lam.diff()
    x = torch.tensor([[-1.5, 0.0, 0.7]], dtype=F64)
    xs: list[torch.Tensor] = []
    dpmpp_2m(denoise, x, logsnrs, on_step=lambda i, steps, x, x0: xs.append(x))
    x0s = []
    for i in range(4):
        x0s.append(denoise(x, logsnrs[i : i + 1]).x0)
        r = h[i - 1] / h[i]
        d = x0s[i] if i in (0, 3) else (1 + 1 / (2 * r)) * x0s[i] - 1 / (2 * r) * x0s[i - 1]
        x = sigma[i + 1] / sigma[i] * x - alpha[i + 1] * torch.expm1(-h[i]) * d
        torch.testing.assert_close(xs[i], x)


@pytest.mark.parametrize("sampler", [ddim, dpmpp_2m, heun])
def test_deterministic_samplers_solve_the_ode_down_to_clean_data(sampler):
    """On the default schedule, which ends at infinite log-SNR."""
    schedule = build_schedule(ScheduleConfig(), 64)
    x = torch.tensor([[-1.5, 0.0, 0.7]], dtype=F64)
    errors = []
    for steps in (50, 100, 200):
        logsnrs = step_logsnrs(schedule, steps)
        errors.append((sampler(denoise, x, logsnrs) - exact_ode(x, logsnrs[0], math.inf)).abs().max().item())
    assert errors[0] > 1.8 * errors[1] > 1.8**2 * errors[2]
    assert errors[-1] < {ddim: 6e-3, dpmpp_2m: 5e-4, heun: 5e-4}[sampler]


def test_second_order_is_more_accurate_at_few_steps():
    logsnrs = step_logsnrs(build_schedule(ScheduleConfig(), 64), 20)
    x = torch.tensor([[-1.5, 0.0, 0.7]], dtype=F64)
    exact = exact_ode(x, logsnrs[0], math.inf)
    error = {f: (f(denoise, x, logsnrs) - exact).abs().mean() for f in (ddim, dpmpp_2m)}
    assert error[dpmpp_2m] < error[ddim] / 3


def test_one_ddpm_step_is_the_posterior_of_the_discrete_chain():
    """Compare with DDPM's eq. 7 in beta and alpha_bar, and with Improved DDPM's eq. 15 for the variance."""
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=F64)
    alpha_bar = torch.cumprod(1 - betas, 0)
    x, fraction = torch.randn(1, 3, dtype=F64), torch.tensor([[0.0, 0.6, 1.3]], dtype=F64)
    for t in (1, 30, 500, 999):
        beta, bar_t, bar_s = betas[t], alpha_bar[t], alpha_bar[t - 1]
        logsnrs = torch.stack([bar_t.logit(), bar_s.logit()])
        x0 = denoise(x, logsnrs[:1]).x0
        mean = (bar_s.sqrt() * beta * x0 + (1 - beta).sqrt() * (1 - bar_s) * x) / (1 - bar_t)
        beta_tilde = beta * (1 - bar_s) / (1 - bar_t)
        torch.testing.assert_close(ddpm(denoise, x, logsnrs, noise=lambda: torch.zeros_like(x)), mean)
        for f, variance in ((0.25, None), (fraction, fraction)):
            wrapped = lambda x, logsnr_B, v=variance: denoise(x, logsnr_B)._replace(variance=v)  # noqa: E731
            x_s = ddpm(wrapped, x, logsnrs, noise=lambda: torch.ones_like(x), gamma=0.25)
            std = torch.exp((f * beta.log() + (1 - f) * beta_tilde.log()) / 2)
            torch.testing.assert_close(x_s - mean, std.expand_as(x), rtol=1e-8, atol=1e-12)


def test_learned_variance_makes_coarse_ancestral_sampling_exact():
    """With the true reverse variance, steps of any length are exact for Gaussian data."""

    def with_true_variance(logsnrs):
        after = dict(pairwise(logsnrs.tolist()))

        def f(x, logsnr_B):
            logsnr_t = logsnr_B[0].item()
            (alpha, sigma), (alpha_s, sigma_s) = (
                alpha_sigma(torch.tensor(z, dtype=F64)) for z in (logsnr_t, after[logsnr_t])
            )
            c = -math.expm1(logsnr_t - after[logsnr_t])
            truth = c * sigma_s**2 + (alpha_s * c) ** 2 * S2 * sigma**2 / (alpha**2 * S2 + sigma**2)
            fraction = torch.log(truth / (c * sigma_s**2)) / torch.log(sigma**2 / sigma_s**2)
            return denoise(x, logsnr_B)._replace(variance=fraction.expand_as(x))

        return f

    logsnrs = torch.tensor([-6.0, -2.0, 0.5, 1.0, 5.0], dtype=F64)
    mean, variance, _ = mean_and_variance(ddpm, logsnrs, with_true_variance(logsnrs))
    torch.testing.assert_close((mean, variance), marginal(5.0))


def test_ddim_with_eta_one_is_ddpm_with_the_lower_variance():
    logsnrs = step_logsnrs(build_schedule(ScheduleConfig(), 64), 7)
    x = torch.randn(4, 3, dtype=F64)
    a = ddim(denoise, x, logsnrs, eta=1.0, noise=PictureNoise(range(4), (3,), dtype=F64))
    b = ddpm(denoise, x, logsnrs, gamma=0.0, noise=PictureNoise(range(4), (3,), dtype=F64))
    torch.testing.assert_close(a, b)


@pytest.mark.parametrize("name", sampler_names())
def test_all_samplers_follow_the_contract(name):
    """Check the denoiser calls, the callback, the dtype, and that the result is the last x0 estimate."""
    logsnrs = step_logsnrs(build_schedule(ScheduleConfig(), 64), 6)
    levels, seen = [], []

    def record(x, logsnr_B):
        assert x.dtype == logsnr_B.dtype == torch.float32 and logsnr_B.shape == (2,)
        levels.append(logsnr_B[0].item())
        return Estimate(denoise(x, logsnr_B).x0.float())

    def on_step(i, steps, x, x0):
        seen.append((i, steps, x, x0))

    noise = PictureNoise([1, 2], (3,))
    out = sampler_function(name)(record, noise(), logsnrs, noise=noise, on_step=on_step)
    # Heun evaluates each level at the end of one step and the beginning of the next.
    twice = [logsnrs[0], *logsnrs[1:-1].repeat_interleave(2)]
    expected = twice if name == "heun" else logsnrs[:-1]
    assert levels == pytest.approx([float(logsnr) for logsnr in expected], abs=1e-6)
    assert [(i, n) for i, n, _, _ in seen] == [(i, 6) for i in range(6)]
    assert out is seen[-1][2] and out.dtype == torch.float32
    torch.testing.assert_close(out, seen[-1][3])


@pytest.mark.parametrize("name", sampler_names())
def test_float32_images_are_close_to_float64(name):
    logsnrs = step_logsnrs(build_schedule(ScheduleConfig(), 64), 50)
    outs = []
    for dtype in (torch.float32, F64):
        noise = PictureNoise([1, 2], (3,), dtype=F64)
        model = lambda x, logsnr_B, dtype=dtype: Estimate(denoise(x, logsnr_B).x0.to(dtype))  # noqa: E731
        x = noise().to(dtype)
        outs.append(sampler_function(name)(model, x, logsnrs, noise=lambda noise=noise, dtype=dtype: noise().to(dtype)))
    torch.testing.assert_close(outs[0].double(), outs[1], rtol=0, atol=2e-6)


def test_step_logsnrs_are_spaced_as_requested():
    schedule = build_schedule(ScheduleConfig(), 64)
    logsnrs = step_logsnrs(schedule, 4)
    t = torch.tensor([1.0, 0.75, 0.5, 0.25], dtype=F64)
    torch.testing.assert_close(logsnrs[:-1], schedule(t))
    assert logsnrs.dtype == F64 and logsnrs[-1] == math.inf


def test_steps_uniform_in_log_snr_are_within_the_range_of_training():
    schedule = build_schedule(ScheduleConfig(), 64)
    expected = torch.tensor([-10, -5, 0, 5, math.inf], dtype=F64)
    torch.testing.assert_close(step_logsnrs(schedule, 4, spacing="logsnr", logsnr_range=(-10, 5)), expected)
    ends = step_logsnrs(schedule, 4, spacing="logsnr", logsnr_range=(-99, 99))[[0, -2]]
    torch.testing.assert_close(ends, schedule(torch.tensor([1.0, 0.0], dtype=F64)))
    assert step_logsnrs(schedule, 1, spacing="logsnr").tolist() == [-9, math.inf]


def test_auto_uses_the_levels_of_a_discrete_schedule():
    for kind, spacing in (("cosine", "logsnr"), ("discrete_cosine", "time")):
        schedule = build_schedule(ScheduleConfig(kind=kind), 64)
        expected = step_logsnrs(schedule, 7, spacing=spacing)
        assert torch.equal(step_logsnrs(schedule, 7, spacing="auto"), expected)
        assert not torch.equal(step_logsnrs(schedule, 7, spacing="time" if kind == "cosine" else "logsnr"), expected)


def test_invalid_options_are_rejected():
    x, logsnrs = torch.zeros(1, 3, dtype=F64), torch.tensor([-1.0, 1.0], dtype=F64)
    with pytest.raises(ValueError, match="increase"):
        dpmpp_2m(denoise, x, logsnrs.flip(0))
    with pytest.raises(ValueError, match="needs noise"):
        ddim(denoise, x, logsnrs, eta=1.0)
    with pytest.raises(UserError, match="'no_such_sampler'"):
        create_sampler("no_such_sampler")
    with pytest.raises(ValueError, match="at least 1"):
        step_logsnrs(build_schedule(ScheduleConfig(), 64), 0)
