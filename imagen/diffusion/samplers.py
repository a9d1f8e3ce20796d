"""Samplers: from noise to pictures along a list of noise levels.

A sampler takes a denoiser, x at the first level and `logsnrs`, rising levels lambda_0 < ... < lambda_N (1-D, float64).
It calls the denoiser N times, at lambda_0 ... lambda_{N-1} (`heun` twice a step), and returns x at lambda_N. The last
level of `step_logsnrs` is +infinity, alpha = 1 and sigma = 0, where the step of every sampler is to return the x0
estimate itself, without noise. (A finite last level gives x at that level: for tests, or to stop half-way.)

Damping d (of the samplers without noise): the noise (x - alpha x0) / sigma, which a step leaves as it is, shrinks by
e^(-d h / 2) in a step of length h, so that it falls 1 + d times as fast as the levels say. A network that is not exact
leaves errors in x that look like more noise than it is told (exposure bias, 2308.15321, where each step's noise is
scaled by a constant). 0: the probability-flow equation.

Notation: a step goes from t to s, lambda_s > lambda_t. Coefficients are Python floats (float64); x keeps its dtype.
"""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor

from imagen.diffusion.guidance import Denoiser, Estimate, at_level
from imagen.diffusion.schedule import DiscreteCosine, Schedule, step_times

Spacing = Literal["time", "logsnr", "auto"]
Levels = Tensor | Sequence[float]
Noise = Callable[[], Tensor]  # the next standard normal tensor, shaped like x
OnStep = Callable[[int, int, Tensor, Tensor], None]  # (i, N, x after step i, x0 estimate of step i)
Step = Callable[[Tensor, Estimate, float, float], Tensor]  # (x_t, estimate, lambda_t, lambda_s) -> x_s


def step_logsnrs(
    schedule: Schedule, steps: int, *, spacing: Spacing = "time", logsnr_range: tuple[float, float] = (-9.0, 14.0)
) -> Tensor:
    """The levels of `steps` steps; the last is infinite. Float64.

    spacing: "time" is the schedule's `step_times`, even from t = 1 unless it is discrete; "logsnr" is even in lambda
    from the lower end of `logsnr_range` to its upper end, from where the last step goes to clean pictures. The range is
    cut to that of the schedule, beyond which the network was not trained. "auto" is "logsnr", but "time" for a discrete
    schedule, whose network knows its own levels alone.
    """
    if steps < 1:
        raise ValueError(f"steps must be at least 1, not {steps}")
    t = step_times(schedule, steps)
    if spacing == "time" or (spacing == "auto" and isinstance(schedule, DiscreteCosine)):
        logsnrs = schedule(t)
    else:
        first, last = (float(schedule(t[end])) for end in (0, -1))
        low, high = max(logsnr_range[0], first), min(logsnr_range[1], last)
        logsnrs = torch.cat([torch.linspace(low, high, steps, dtype=torch.float64), t[-1:]])
    logsnrs[-1] = math.inf
    return logsnrs


@torch.no_grad()
def ddpm(
    denoise: Denoiser, x: Tensor, logsnrs: Levels, *, noise: Noise, gamma: float = 0.3, on_step: OnStep | None = None
) -> Tensor:
    """Ancestral sampling (2006.11239): x_s ~ p(x_s | x_t), the posterior of x_s given x_t and the estimate of x0.

    The log variance of p is f log beta + (1 - f) log beta~, between its upper bound beta and its lower bound beta~.
    f is the estimate's variance if it has one (2102.09672), else the fixed `gamma`.
    """

    def step(x: Tensor, estimate: Estimate, logsnr_t: float, logsnr_s: float) -> Tensor:
        (alpha_t, sigma_t), (alpha_s, sigma_s) = _alpha_sigma(logsnr_t), _alpha_sigma(logsnr_s)
        one_minus_eh = -math.expm1(logsnr_t - logsnr_s)  # 1 - SNR_t / SNR_s
        mean = math.exp(logsnr_t - logsnr_s) * alpha_s / alpha_t * x + one_minus_eh * alpha_s * estimate.x0
        if sigma_s == 0:
            return mean
        # beta = (1 - e^-h) sigma_t^2 and beta~ = (1 - e^-h) sigma_s^2, so the standard deviation is
        # sqrt(1 - e^-h) sigma_s (sigma_t / sigma_s)^f.
        f = gamma if estimate.variance is None else estimate.variance
        return mean + math.sqrt(one_minus_eh) * sigma_s * (sigma_t / sigma_s) ** f * noise()

    return _walk(denoise, x, logsnrs, step, on_step)


@torch.no_grad()
def ddim(
    denoise: Denoiser,
    x: Tensor,
    logsnrs: Levels,
    *,
    eta: float = 0.0,
    damping: float = 0.0,
    noise: Noise | None = None,
    on_step: OnStep | None = None,
) -> Tensor:
    """DDIM (2010.02502), eq. 12 and 16: deterministic at eta = 0, ddpm with gamma = 0 at eta = 1.

    First order in the step size. Raises ValueError if eta > 0 has no noise.
    """
    if eta > 0 and noise is None:
        raise ValueError("ddim with eta > 0 needs noise")

    def step(x: Tensor, estimate: Estimate, logsnr_t: float, logsnr_s: float) -> Tensor:
        (alpha_t, sigma_t), (alpha_s, sigma_s) = _alpha_sigma(logsnr_t), _alpha_sigma(logsnr_s)
        eta2_beta = -(eta**2) * math.expm1(logsnr_t - logsnr_s)  # added variance / sigma_s^2
        # x_s = alpha_s x0 + sigma_s sqrt(1 - eta2_beta) eps + sigma_s sqrt(eta2_beta) z, with eps from x_t and x0.
        keep = sigma_s / sigma_t * math.sqrt(1 - eta2_beta) * _damped(damping, logsnr_s - logsnr_t)
        x_s = keep * x + (alpha_s - keep * alpha_t) * estimate.x0
        if noise is None or eta2_beta == 0 or sigma_s == 0:
            return x_s
        return x_s + sigma_s * math.sqrt(eta2_beta) * noise()

    return _walk(denoise, x, logsnrs, step, on_step)


@torch.no_grad()
def dpmpp_2m(
    denoise: Denoiser, x: Tensor, logsnrs: Levels, *, damping: float = 0.0, on_step: OnStep | None = None
) -> Tensor:
    """DPM-Solver++(2M) (2211.01095, Algorithm 2): deterministic, second order, one call of the denoiser a step.

    The first step has no history, and the last is infinitely long: both are first-order steps, those of DDIM.
    """
    extrapolated = _extrapolating(logsnrs)

    def step(x: Tensor, estimate: Estimate, logsnr_t: float, logsnr_s: float) -> Tensor:
        x0 = extrapolated(estimate, logsnr_t, logsnr_s)
        return _to_level(x, x0, logsnr_t, logsnr_s, damping)

    return _walk(denoise, x, logsnrs, step, on_step)


@torch.no_grad()
def dpmpp_2m_sde(
    denoise: Denoiser, x: Tensor, logsnrs: Levels, *, noise: Noise, on_step: OnStep | None = None
) -> Tensor:
    """SDE-DPM-Solver++(2M) (2211.01095): ddpm with gamma = 0, at dpmpp_2m's estimate of x0."""
    extrapolated = _extrapolating(logsnrs)

    def step(x: Tensor, estimate: Estimate, logsnr_t: float, logsnr_s: float) -> Tensor:
        (_, sigma_t), (alpha_s, sigma_s) = _alpha_sigma(logsnr_t), _alpha_sigma(logsnr_s)
        one_minus_eh = -math.expm1(logsnr_t - logsnr_s)  # the paper's h is half of ours: its e^-2h is our e^-h
        x0 = extrapolated(estimate, logsnr_t, logsnr_s)
        mean = sigma_s / sigma_t * math.exp((logsnr_t - logsnr_s) / 2) * x + alpha_s * one_minus_eh * x0
        return mean if sigma_s == 0 else mean + sigma_s * math.sqrt(one_minus_eh) * noise()

    return _walk(denoise, x, logsnrs, step, on_step)


@torch.no_grad()
def heun(
    denoise: Denoiser, x: Tensor, logsnrs: Levels, *, damping: float = 0.0, on_step: OnStep | None = None
) -> Tensor:
    """Heun's method, as EDM has it (2206.00364, Algorithm 1), for the equation in lambda: deterministic, second order.

    The linear part of the equation is solved exactly, so that a step is one of DDIM with the mean of the x0 estimates
    at its two ends, where the second end is found by a DDIM step. Two calls of the denoiser a step, one in the last.
    """

    def step(x: Tensor, estimate: Estimate, logsnr_t: float, logsnr_s: float) -> Tensor:
        euler = _to_level(x, estimate.x0, logsnr_t, logsnr_s, damping)
        if logsnr_s == math.inf:
            return euler
        there = denoise(euler, at_level(euler, logsnr_s))
        return _to_level(x, (estimate.x0 + there.x0) / 2, logsnr_t, logsnr_s, damping)

    return _walk(denoise, x, logsnrs, step, on_step)


SAMPLERS: dict[str, Callable[..., Tensor]] = {
    "ddpm": ddpm,
    "ddim": ddim,
    "dpmpp_2m": dpmpp_2m,
    "dpmpp_2m_sde": dpmpp_2m_sde,
    "heun": heun,
}


def sample(
    sampler: str,
    denoise: Denoiser,
    x: Tensor,
    logsnrs: Levels,
    *,
    noise: Noise,
    eta: float = 0.0,
    gamma: float = 0.3,
    damping: float = 0.0,
    on_step: OnStep | None = None,
) -> Tensor:
    """Runs the sampler of that name with those of the options that it has."""
    options: dict[str, dict[str, object]] = {
        "ddpm": {"noise": noise, "gamma": gamma},
        "ddim": {"noise": noise, "eta": eta, "damping": damping},
        "dpmpp_2m": {"damping": damping},
        "dpmpp_2m_sde": {"noise": noise},
        "heun": {"damping": damping},
    }
    if sampler not in SAMPLERS:
        raise ValueError(f"no sampler {sampler!r}; there are {', '.join(SAMPLERS)}")
    return SAMPLERS[sampler](denoise, x, logsnrs, on_step=on_step, **options.get(sampler, {}))


def _extrapolating(logsnrs: Levels) -> Callable[[Estimate, float, float], Tensor]:
    """DPM-Solver++(2M)'s estimate of x0 in the middle of a step, from those at its beginning and a step before."""
    last: tuple[Tensor, float] | None = None  # x0 estimate and h of the step before
    end = float(logsnrs[-1])

    def extrapolated(estimate: Estimate, logsnr_t: float, logsnr_s: float) -> Tensor:
        nonlocal last
        h, x0 = logsnr_s - logsnr_t, estimate.x0
        if last is not None and logsnr_s != end:
            x0_before, h_before = last
            x0 = x0 + h / (2 * h_before) * (x0 - x0_before)
        last = estimate.x0, h
        return x0

    return extrapolated


def _to_level(x: Tensor, x0: Tensor, logsnr_t: float, logsnr_s: float, damping: float) -> Tensor:
    """x_s when x0 stays the same from t to s: the step of DDIM, and the exact solution of the linear part."""
    (_, sigma_t), (alpha_s, sigma_s) = _alpha_sigma(logsnr_t), _alpha_sigma(logsnr_s)
    # The paper's lambda is log(alpha / sigma), half of ours, and so is its h.
    keep = sigma_s / sigma_t * _damped(damping, logsnr_s - logsnr_t)
    return keep * x - alpha_s * math.expm1((1 + damping) * (logsnr_t - logsnr_s) / 2) * x0


def _damped(damping: float, h: float) -> float:
    return math.exp(-damping * h / 2) if damping else 1.0  # the last h is infinite


def _walk(denoise: Denoiser, x: Tensor, logsnrs: Levels, step: Step, on_step: OnStep | None) -> Tensor:
    levels = [float(logsnr) for logsnr in logsnrs]
    if len(levels) < 2 or any(not t < s for t, s in pairwise(levels)):
        raise ValueError("logsnrs must rise and have at least two entries")
    for i, (logsnr_t, logsnr_s) in enumerate(pairwise(levels)):
        estimate = denoise(x, at_level(x, logsnr_t))
        x = step(x, estimate, logsnr_t, logsnr_s)
        if on_step is not None:
            on_step(i, len(levels) - 1, x, estimate.x0)
    return x


def _alpha_sigma(logsnr: float) -> tuple[float, float]:
    """alpha and sigma of a Python float, +infinity included."""
    return math.sqrt(1 / (1 + math.exp(-logsnr))), math.sqrt(1 / (1 + math.exp(logsnr)))
