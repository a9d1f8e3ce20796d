"""Test objectives: identities between prediction types, weights by hand, and the variance bound."""

import math

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from imagen.diffusion.objective import (
    ObjectiveConfig,
    earlier_logsnr,
    loss,
    stratified_times,
    target,
    to_x0,
    variance_bits,
    weight,
)
from imagen.diffusion.schedule import ScheduleConfig, alpha_sigma, build_schedule, diffuse
from imagen.errors import UserError

F64 = torch.float64
PREDICTIONS = ["eps", "x0", "v"]
WEIGHTINGS = ["p2", "min_snr", "sigmoid", "velocity"]
LOGSNR = torch.tensor([-12.0, -3.0, 0.0, 1.0, 4.0, 11.0], dtype=F64)


@pytest.fixture
def pictures():
    g = torch.Generator().manual_seed(0)
    x0 = torch.rand(6, 3, 4, 4, generator=g, dtype=F64) * 2 - 1
    eps = torch.randn(6, 3, 4, 4, generator=g, dtype=F64)
    return x0, eps, diffuse(x0, eps, LOGSNR)


def output_for(prediction, x0, x_t):
    """Return the output of a U-Net at x_t that implies this x0 estimate."""
    alpha, sigma = alpha_sigma(LOGSNR, like=x_t)
    return target(prediction, x0, (x_t - alpha * x0) / sigma, LOGSNR)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_conversions_between_prediction_types_are_consistent(pictures, prediction):
    x0, eps, x_t = pictures
    answer = target(prediction, x0, eps, LOGSNR)
    torch.testing.assert_close(to_x0(prediction, answer, x_t, LOGSNR), x0)
    torch.testing.assert_close(output_for(prediction, x0, x_t), answer)
    wrong = answer + 0.1  # the output of a network need not be consistent with any x0 and eps
    torch.testing.assert_close(output_for(prediction, to_x0(prediction, wrong, x_t, LOGSNR), x_t), wrong)


@pytest.mark.parametrize("weighting", ["constant", *WEIGHTINGS])
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_only_a_perfect_prediction_has_zero_loss(pictures, prediction, weighting):
    x0, eps, _ = pictures
    config = ObjectiveConfig(prediction=prediction, weighting=weighting)
    answer = target(prediction, x0, eps, LOGSNR)
    perfect, wrong = (loss(output, x0, eps, LOGSNR, config) for output in (answer, answer + 0.1))
    assert perfect.total.shape == perfect.eps_mse.shape == (6,)
    assert (perfect.total == 0).all() and (perfect.eps_mse == 0).all() and perfect.variance_bits is None
    assert (wrong.total > 0).all()


def test_constant_weighting_is_the_plain_mse(pictures):
    x0, eps, _ = pictures
    for prediction in PREDICTIONS:
        answer = target(prediction, x0, eps, LOGSNR) + 0.1
        total = loss(answer, x0, eps, LOGSNR, ObjectiveConfig(prediction=prediction)).total
        torch.testing.assert_close(total, torch.full_like(total, 0.01))


@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_loss_and_its_gradient_do_not_depend_on_the_prediction(pictures, weighting):
    """An x0 estimate has the same loss and gradient for all prediction types."""
    x0, eps, x_t = pictures
    estimate = (0.7 * x0 + 0.2).requires_grad_()
    results = []
    for prediction in PREDICTIONS:
        output = output_for(prediction, estimate, x_t)
        result = loss(output, x0, eps, LOGSNR, ObjectiveConfig(prediction=prediction, weighting=weighting))
        (gradient,) = torch.autograd.grad(result.total.sum(), estimate)
        results.append((result.total, result.eps_mse, gradient))
    for other in results[1:]:
        torch.testing.assert_close(other, results[0], rtol=1e-8, atol=1e-12)


def test_weights_equal_values_by_hand():
    snr = 4.0
    logsnr = torch.tensor([math.log(snr)], dtype=F64)

    def w(prediction, weighting, **options):
        return weight(logsnr, ObjectiveConfig(prediction=prediction, weighting=weighting, **options)).item()

    # P2 in eps space: 1 / (1 + 4)^0.5; the factor alpha^2 = 4/5 converts it to v.
    assert w("eps", "p2") == pytest.approx(5**-0.5)
    assert w("eps", "p2", p2_k=2.0, p2_gamma=1.0) == pytest.approx(1 / 6)
    assert w("x0", "p2") == pytest.approx(4 * 5**-0.5)
    assert w("v", "p2") == pytest.approx(0.8 * 5**-0.5)
    # Min-SNR, section 3.4: min(SNR, g), min(SNR, g) / SNR and min(SNR, g) / (SNR + 1) for x0, eps and v.
    for gamma in (5.0, 3.0):
        low = min(snr, gamma)
        assert w("x0", "min_snr", min_snr_gamma=gamma) == pytest.approx(low)
        assert w("eps", "min_snr", min_snr_gamma=gamma) == pytest.approx(low / snr)
        assert w("v", "min_snr", min_snr_gamma=gamma) == pytest.approx(low / (snr + 1))
        assert w("v", "velocity", velocity_snr=gamma) == pytest.approx((1 + low) / (1 + snr))
        assert w("x0", "velocity", velocity_snr=gamma) == pytest.approx(1 + low)
    # Sigmoid in eps space: sigmoid(-1 - log 4) = 1 / (1 + 4 e); in x0 space e^b sigmoid(lambda - b).
    assert w("eps", "sigmoid") == pytest.approx(1 / (1 + 4 * math.e))
    assert w("x0", "sigmoid") == pytest.approx(math.exp(-1) / (1 + math.exp(-1 - math.log(4))))
    assert [w(p, "constant") for p in PREDICTIONS] == [1, 1, 1]


def test_variance_bits_is_the_kl_of_the_discrete_posterior():
    """Compare with normal distributions with DDPM's beta, beta~ and posterior mean, in a chain of 1,000 steps."""
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=F64)
    alpha_bar = torch.cumprod(1 - betas, 0)
    step = torch.tensor([1, 10, 500, 999])
    beta, bar_t, bar_s = (z.reshape(-1, 1) for z in (betas[step], alpha_bar[step], alpha_bar[step - 1]))
    g = torch.Generator().manual_seed(0)
    x0, eps, x0_estimate, v = torch.randn(4, 4, 5, generator=g, dtype=F64)
    x_t = bar_t.sqrt() * x0 + (1 - bar_t).sqrt() * eps

    def posterior_mean(x0):  # DDPM, eq. 7
        return (bar_s.sqrt() * beta * x0 + (1 - beta).sqrt() * (1 - bar_s) * x_t) / (1 - bar_t)

    beta_tilde = beta * (1 - bar_s) / (1 - bar_t)
    f = (v + 1) / 2
    model_variance = torch.exp(f * beta.log() + (1 - f) * beta_tilde.log())
    kl = kl_divergence(
        Normal(posterior_mean(x0), beta_tilde.sqrt()), Normal(posterior_mean(x0_estimate), model_variance.sqrt())
    )
    eps_error2 = bar_t / (1 - bar_t) * (x0 - x0_estimate).square()
    bits = variance_bits(v, eps_error2, bar_t.flatten().logit(), bar_s.flatten().logit())
    torch.testing.assert_close(bits, kl.mean(1) / math.log(2), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_learned_variance_does_not_change_the_gradient_of_the_mean(pictures, prediction):
    x0, eps, _ = pictures
    config = ObjectiveConfig(prediction=prediction, variance_weight=0.002)
    schedule = build_schedule(ScheduleConfig(), 64)
    t = torch.linspace(0.01, 0.99, 6, dtype=F64)
    logsnr, logsnr_s = schedule(t), earlier_logsnr(schedule, t)
    mean = (target(prediction, x0, eps, logsnr) + 0.1).requires_grad_()
    v = torch.full_like(mean, 0.3).requires_grad_()
    with_variance = loss(torch.cat([mean, v], 1), x0, eps, logsnr, config, logsnr_s_B=logsnr_s)
    mean_gradient, v_gradient = torch.autograd.grad(with_variance.total.sum(), [mean, v])
    without = loss(mean, x0, eps, logsnr, config)
    torch.testing.assert_close(mean_gradient, torch.autograd.grad(without.total.sum(), mean)[0])
    assert (v_gradient != 0).all()
    # The bound is a sum over 1,000 steps, so a weight of 0.002 on it is a weight of 2 on one step.
    torch.testing.assert_close(with_variance.total.detach(), (without.total + 2 * with_variance.variance_bits).detach())


def test_learned_variance_has_its_minimum_at_the_true_variance():
    """For data ~ N(0, s^2) the optimal reverse variance is known."""
    schedule = build_schedule(ScheduleConfig(), 64)
    t, s2 = torch.tensor([0.02], dtype=F64), 0.04
    logsnr, logsnr_s = schedule(t), earlier_logsnr(schedule, t)
    (alpha, sigma), (alpha_s, sigma_s) = alpha_sigma(logsnr), alpha_sigma(logsnr_s)
    posterior = s2 * sigma**2 / (alpha**2 * s2 + sigma**2)  # Var(x0 | x_t) = E (x0 - x0')^2 of the best estimate
    c = -torch.expm1(logsnr - logsnr_s)
    truth = c * sigma_s**2 + (alpha_s * c) ** 2 * posterior  # Var(x_s | x_t) = beta~ + spread of the posterior mean
    f = torch.log(truth / (c * sigma_s**2)) / torch.log(sigma**2 / sigma_s**2)
    assert 0.1 < f.item() < 0.99
    v = (2 * f - 1).reshape(1, 1).requires_grad_()
    eps_error2 = (alpha**2 / sigma**2 * posterior).reshape(1, 1)
    bits = variance_bits(v, eps_error2, logsnr, logsnr_s)
    (gradient,) = torch.autograd.grad(bits.sum(), v)
    assert gradient.item() == pytest.approx(0, abs=1e-12)
    for other in (v - 0.1, v + 0.1):
        assert variance_bits(other, eps_error2, logsnr, logsnr_s) > bits


@pytest.mark.parametrize("kind", ["cosine", "linear"])
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_learned_variance_is_finite_in_float32_and_bf16_at_every_time(kind, prediction):
    schedule = build_schedule(ScheduleConfig(kind=kind, shift_reference=64), 256)
    t = torch.cat([torch.zeros(1), torch.logspace(-8, 0, 63)])
    x0, eps = torch.randn(2, 64, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    for scale, dtype in ((0.0, torch.bfloat16), (1.0, torch.float32), (1e3, torch.float32)):
        output = (torch.randn(64, 6, 4, 4) * scale).to(dtype).requires_grad_()
        config = ObjectiveConfig(prediction=prediction, weighting="p2")
        result = loss(output, x0, eps, schedule(t), config, logsnr_s_B=earlier_logsnr(schedule, t))
        assert result.total.dtype == torch.float32
        result.total.sum().backward()
        assert result.total.isfinite().all() and output.grad.isfinite().all()


def test_invalid_objectives_are_rejected(pictures):
    x0, eps, _ = pictures
    with pytest.raises(ValueError, match="5 channels"):
        loss(torch.zeros(6, 5, 4, 4), x0, eps, LOGSNR, ObjectiveConfig())
    with pytest.raises(ValueError, match="logsnr_s_B"):
        loss(torch.zeros(6, 6, 4, 4), x0, eps, LOGSNR, ObjectiveConfig())
    with pytest.raises(UserError, match="p2_k"):
        ObjectiveConfig(p2_k=0.0)


def test_times_are_stratified_over_the_batch():
    batch, u = 8, 0.3
    t = stratified_times(u, torch.arange(batch), batch)
    assert t.dtype == F64
    torch.testing.assert_close(t, (torch.arange(batch, dtype=F64) + 0.3) / 8)
    # The times of a rank are a slice of all times. With one u per sample, each time remains in its stratum.
    torch.testing.assert_close(stratified_times(u, torch.arange(4, 6), batch), t[4:6], rtol=0, atol=0)
    each = stratified_times(torch.rand(batch, dtype=F64), torch.arange(batch), batch)
    assert ((each * batch).floor() == torch.arange(batch)).all()
    assert float(stratified_times(1 - 2**-53, torch.tensor([2047]), 2048)) <= 1
