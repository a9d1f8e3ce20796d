"""Prediction types and loss weightings.

With x_t = alpha x0 + sigma eps the U-Net may predict eps, x0 or v = alpha eps - sigma x0 (2202.00512). Given x_t,
each determines the others, and their squared errors are the same error in different units:

    |eps - eps'|^2 = SNR |x0 - x0'|^2 = alpha^2 |v - v'|^2.
"""

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from imagen import limits
from imagen.diffusion.schedule import Schedule, alpha_sigma

Prediction = Literal["eps", "x0", "v"]

# The variational bound of a learned variance is that of 1000 reverse steps, as in discrete models.
VARIANCE_STEPS = 1000


@dataclass(frozen=True, kw_only=True)
class ObjectiveConfig:
    """The prediction type of a stage and the weighting of its loss."""

    prediction: Prediction = "eps"  # what the network predicts: the noise, the clean image, or v
    # constant: the plain MSE of the prediction (the paper's loss). p2: 2204.00227. min_snr: 2303.09556.
    # sigmoid: 2410.19324. velocity: the MSE of v (2511.13720). The last four weight the error independently of the
    # prediction type. A small network predicts x0 best: unlike eps and v, it contains no noise to copy from the input.
    weighting: Literal["constant", "p2", "min_snr", "sigmoid", "velocity"] = "constant"
    p2_gamma: float = 0.5  # p2: the weight is (p2_k + SNR) ** -p2_gamma
    p2_k: float = 1.0  # p2: see p2_gamma
    min_snr_gamma: float = 5.0  # min_snr: upper bound of the weight of the x0 error
    sigmoid_bias: float = -1.0  # sigmoid: the weight is sigmoid(bias - log-SNR)
    velocity_snr: float = 30.0  # above this SNR the weight of the x0 error is constant; it would grow without limit
    # Weight of the variational bound when the network also predicts its variance (2102.09672, eq. 16).
    variance_weight: float = 0.001

    def __post_init__(self) -> None:
        limits.check(self, limits.OBJECTIVE)


class Loss(NamedTuple):
    """Losses of the samples of a batch, each [B] and float32 (or float64 if the inputs are)."""

    total: Tensor  # what training minimises: weight * MSE, plus the variance term if there is one
    eps_mse: Tensor  # the unweighted error in units of eps: comparable between predictions and weightings; for logs
    variance_bits: Tensor | None = None  # KL of one reverse step, bits per dimension; None without learned variance


def target(prediction: Prediction, x0: Tensor, eps: Tensor, logsnr_B: Tensor) -> Tensor:
    """Return the target of the U-Net for x0 and eps."""
    if prediction == "eps":
        return eps
    if prediction == "x0":
        return x0
    alpha, sigma = alpha_sigma(logsnr_B, like=x0)
    return alpha * eps - sigma * x0


def to_x0(prediction: Prediction, output: Tensor, x_t: Tensor, logsnr_B: Tensor) -> Tensor:
    """Return the x0 estimate that a prediction implies at x_t."""
    alpha, sigma = alpha_sigma(logsnr_B, like=x_t)
    if prediction == "eps":
        return (x_t - sigma * output) / alpha
    if prediction == "v":
        return alpha * x_t - sigma * output
    return output


def eps_mse_factor(prediction: Prediction, logsnr_B: Tensor) -> Tensor:
    """Return eps-MSE / MSE of a prediction type at each noise level: 1, SNR or alpha^2."""
    if prediction == "eps":
        return torch.ones_like(logsnr_B)
    return logsnr_B.exp() if prediction == "x0" else logsnr_B.sigmoid()


def weight(logsnr_B: Tensor, config: ObjectiveConfig) -> Tensor:
    """Return the loss weighting of `config.prediction` at each noise level, [B].

    Each weighting is written in the space of its own paper, then converted to the space of the prediction.
    """
    if config.weighting == "constant":
        return torch.ones_like(logsnr_B)
    snr = logsnr_B.exp()
    space: Prediction = "eps"
    if config.weighting == "p2":  # eq. 8 relative to eq. 4 of 2204.00227
        w = (config.p2_k + snr) ** -config.p2_gamma
    elif config.weighting == "sigmoid":
        # The paper integrates this over lambda: its -dlambda/dt, which depends on the schedule, is left out here.
        w = torch.sigmoid(config.sigmoid_bias - logsnr_B)
    elif config.weighting == "velocity":  # |v - v'|^2 = (1 + SNR) |x0 - x0'|^2
        space, w = "x0", 1 + snr.clamp(max=config.velocity_snr)
    else:
        space, w = "x0", snr.clamp(max=config.min_snr_gamma)
    return w * eps_mse_factor(config.prediction, logsnr_B) / eps_mse_factor(space, logsnr_B)


def loss(
    output: Tensor,
    x0: Tensor,
    eps: Tensor,
    logsnr_B: Tensor,
    config: ObjectiveConfig,
    *,
    logsnr_s_B: Tensor | None = None,
) -> Loss:
    """Return the training loss of each sample.

    output: of the U-Net at x_t, [B, C, ...], or [B, 2C, ...] with the variance after the prediction.
    x0, eps: the clean images and the noise in x_t, [B, C, ...].
    logsnr_B: lambda_t. logsnr_s_B: lambda one step earlier (`earlier_logsnr`), needed with a learned variance only.
    Raises ValueError if the output's channels are neither C nor 2C, or if logsnr_s_B is missing.
    """
    dtype = torch.promote_types(x0.dtype, torch.float32)  # the output may be bf16
    x0, eps, logsnr_B = x0.to(dtype), eps.to(dtype), logsnr_B.to(dtype)
    mean, v = split_variance(output.to(dtype), x0.shape[1])
    error2 = (mean - target(config.prediction, x0, eps, logsnr_B)).square()
    mse_B = error2.flatten(1).mean(1)
    total_B, eps_mse_B = weight(logsnr_B, config) * mse_B, eps_mse_factor(config.prediction, logsnr_B) * mse_B
    if v is None:
        return Loss(total_B, eps_mse_B.detach())
    if logsnr_s_B is None:
        raise ValueError("a learned variance needs logsnr_s_B: earlier_logsnr(schedule, t)")
    per = eps_mse_factor(config.prediction, logsnr_B).reshape(-1, *[1] * (x0.ndim - 1))
    bits_B = variance_bits(v, per * error2.detach(), logsnr_B, logsnr_s_B.to(dtype))
    # The bound is a sum over all steps; 1000 times the KL of a random step is an unbiased estimate.
    total_B = total_B + config.variance_weight * VARIANCE_STEPS * bits_B
    return Loss(total_B, eps_mse_B.detach(), bits_B.detach())


def variance_bits(v: Tensor, eps_error2: Tensor, logsnr_t_B: Tensor, logsnr_s_B: Tensor) -> Tensor:
    """Return KL(q(x_s | x_t, x0) || p(x_s | x_t)) in bits per dimension, [B], where v sets the variance of p.

    Improved DDPM (2102.09672), eq. 15: log variance = f log beta + (1 - f) log beta~ with f = (v + 1) / 2, where
    beta = (1 - e^-h) sigma_t^2, beta~ = (1 - e^-h) sigma_s^2 and h = lambda_s - lambda_t >= 0. Both distributions are
    normal and their means differ by alpha_s (1 - e^-h) (x0 - x0'), so that with r = log(beta / beta~)

        KL = 1/2 (f r + e^(-f r) - 1 + (e^h - 1) e^(-f r) |eps - eps'|^2),

    which has no small denominator and is 0 at s = t. `eps_error2` must come detached: the bound trains only the
    variance, because its gradient is too noisy for the mean. There is no separate decoder term at t < 1/1000, where
    s is 0: the same KL serves.
    """
    shape = (-1, *[1] * (v.ndim - 1))
    h = (logsnr_s_B - logsnr_t_B).reshape(shape)
    r = torch.nn.functional.logsigmoid(-logsnr_t_B) - torch.nn.functional.logsigmoid(-logsnr_s_B)
    # v is not bounded by the network. The clip only prevents an overflow, far outside of the meaningful f in [0, 1].
    fr = ((v + 1) / 2 * r.reshape(shape)).clamp(-20, 20)
    kl = 0.5 * (fr + torch.expm1(-fr) + torch.expm1(h) * torch.exp(-fr) * eps_error2)
    return kl.flatten(1).mean(1) / math.log(2)


def split_variance(output: Tensor, channels: int) -> tuple[Tensor, Tensor | None]:
    """Return (prediction, v) of an output with `channels` or twice as many channels; v is None in the first case."""
    if output.shape[1] == channels:
        return output, None
    if output.shape[1] == 2 * channels:
        mean, v = output.chunk(2, dim=1)
        return mean, v
    raise ValueError(f"the network returned {output.shape[1]} channels for images of {channels}")


def earlier_logsnr(schedule: Schedule, t: Tensor) -> Tensor:
    """Return lambda at s = t - 1/1000 (at least 0), for the variance term of the loss."""
    return schedule((t - 1 / VARIANCE_STEPS).clamp(min=0))


def stratified_times(u: Tensor | float, index: Tensor, batch_size: int) -> Tensor:
    """Return t_i = (u + i) / batch_size, float64: one time in each of `batch_size` equal parts of [0, 1).

    Each t_i is uniform if u is, and the batch covers [0, 1) evenly, which lowers the variance of the loss (VDM,
    2107.00630, App. I.1). A rank or micro-batch passes its indices in the global batch.

    u: in [0, 1); one number for the batch, as in VDM, or one per index.
    """
    return (torch.as_tensor(u, dtype=torch.float64, device=index.device) + index) / batch_size
