"""The training step."""

import math
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import nn

from imagen.train import randomness
from imagen.train.noising import Batch, Noising
from imagen.train.optim import Optimizers


@dataclass(frozen=True)
class StepResult:
    losses: list[float]  # by sample, as are the next two
    eps_mse: list[float]
    times: list[float]
    grad_norm: float  # before clipping
    bad_samples: int  # that the loader replaced
    problem: str | None  # why the step was not applied, naming samples; None: it was


def training_step(
    unet: nn.Module,
    batches: Iterable[Batch],
    samples: int,
    noising: Noising,
    optimizer: Optimizers,
    *,
    clip_norm: float,
    autocast: Callable[[], AbstractContextManager],
) -> StepResult:
    """Forward and backward over the micro-batches, clip, update; no update if the loss or the gradient is not finite.

    The gradient is that of the mean loss over all `samples` of `batches`, however they are split.
    """
    losses, times, keys, bad_samples = [], [], [], 0
    for batch in batches:
        torch.manual_seed(randomness.seed_for(noising.seed, batch.position, randomness.DROPOUT_LAYERS))
        noised = noising(batch)
        with autocast():
            loss = noising.loss(unet, noised)
        (loss.total.sum() / samples).backward()
        losses.append(torch.stack([loss.total.detach(), loss.eps_mse]))
        times.append(noised.t_B)
        keys += batch.keys
        bad_samples += batch.skipped
    grad_norm = clip_gradients(unet, clip_norm)

    total, eps_mse = torch.cat(losses, dim=1).tolist()
    problem = _nonfinite(keys, total, grad_norm)
    if problem is None:
        optimizer.step()
    optimizer.zero_grad()
    return StepResult(total, eps_mse, torch.cat(times).tolist(), grad_norm, bad_samples, problem)


def clip_gradients(unet: nn.Module, limit: float) -> float:
    """Scale the gradient to norm `limit` if it is longer; returns its norm before. The step's one wait for the device.

    torch's clip_grad_norm_ goes over every gradient once more even where nothing is to be clipped.
    """
    parameters = [parameter for parameter in unet.parameters() if parameter.grad is not None]
    total = nn.utils.get_total_norm([parameter.grad for parameter in parameters if parameter.grad is not None])
    norm = total.item()
    if norm > limit:
        nn.utils.clip_grads_with_norm_(parameters, limit, total)
    return norm


def _nonfinite(keys: list[str], losses: list[float], grad_norm: float) -> str | None:
    """What is not finite, and in which samples."""
    if guilty := [key for key, loss in zip(keys, losses, strict=True) if not math.isfinite(loss)]:
        return f"the loss is not finite for {_listed(guilty)}"
    if not math.isfinite(grad_norm):
        return f"the gradient is not finite, with finite losses, in a batch of {_listed(keys)}"
    return None


def _listed(keys: list[str], most: int = 8) -> str:
    return ", ".join(keys[:most]) + (f" and {len(keys) - most} more" if len(keys) > most else "")
