"""The training step."""

import math
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from imagen.data.loading.batches import Batch
from imagen.devices import fetch, send
from imagen.diffusion import randomness
from imagen.stage.loss import ForwardProcess
from imagen.train.low_precision import LowPrecisionCopy
from imagen.train.optim import Optimizers
from imagen.train.parallel import gradient_sync
from imagen.train.ranks import Ranks
from imagen.train.scaling import LossScale


@dataclass(frozen=True)
class StepResult:
    """Result of a step for the whole batch, equal on every rank."""

    losses: list[float]  # per sample, in the order of the positions
    eps_mse: list[float]  # likewise
    times: list[float]  # likewise
    grad_norm: float  # before clipping
    bad_samples: int  # replaced by the loader
    stop: bool  # whether a rank has a reason to stop
    problem: str | None  # the non-finite loss or gradient, with the samples' keys; None if all were finite
    overflowed: bool = False  # whether the step was skipped because the loss scale was too large

    @property
    def applied(self) -> bool:
        """Whether the weights changed."""
        return self.problem is None and not self.overflowed


@dataclass
class PendingStep:
    """A step that the device may still be computing. All ranks call `result` in the same order."""

    numbers: Tensor  # [ranks, 3 x samples per rank + 4]; on the CPU when `arrived` has returned
    shape: tuple[int, int]  # micro-batches per rank, samples per micro-batch
    keys: list[str]  # of this rank's samples
    ranks: Ranks
    scale: LossScale
    arrived: Callable[[], object]  # waits until the numbers have been copied

    def result(self) -> StepResult:
        """Wait until the device has completed the step, and return its result."""
        self.arrived()
        count, samples = self.shape
        measured, (grad_norms, bad_samples, stops, overflows) = self.numbers[:, :-4], self.numbers[:, -4:].T.tolist()
        # The order of the positions: by micro-batch, then by rank.
        losses, eps_mse, times = measured.reshape(-1, count, 3, samples).permute(2, 1, 0, 3).flatten(1).tolist()
        overflowed, problem = overflows[0] > 0, None
        if not overflowed and not all(map(math.isfinite, (grad_norms[0], *losses))):
            own = measured[self.ranks.rank].reshape(count, 3, samples)[:, 0].flatten()
            problem = _nonfinite(self.keys, own, losses, self.ranks)
        bad = int(sum(bad_samples))
        return StepResult(losses, eps_mse, times, grad_norms[0], bad, sum(stops) > 0, problem, overflowed)


def training_step(*arguments: Any, **options: Any) -> StepResult:
    """Run a step, wait for it, and return its result. Parameters as for `launch_step`."""
    return launch_step(*arguments, **options).result()


def launch_step(
    network: nn.Module,
    batches: Iterable[Batch],
    count: int,
    forward_process: ForwardProcess,
    optimizer: Optimizers,
    *,
    clip_norm: float,
    autocast: Callable[[], AbstractContextManager],
    ranks: Ranks | None = None,
    stop: Callable[[], bool] = lambda: False,
    compute: Callable[[], AbstractContextManager] = nullcontext,
    scale: LossScale | None = None,
    copy: LowPrecisionCopy | None = None,
    waits: bool | None = None,
) -> PendingStep:
    """Launch forward and backward passes over this rank's `count` micro-batches, gradient clipping and the update.

    The gradient is that of the mean loss over all samples of all ranks, however they are divided. The parameters do not
    change if a loss or the gradient is non-finite on any rank.

    stop: returns whether this rank has a reason to stop. compute: context around the forward process and forward pass,
    to time them. scale: loss scale for float16; the step updates it. copy: low-precision copy of `network` to use for
    the forward and backward pass.
    waits: whether the step waits for losses and gradient norm before the update. Otherwise non-finite values are
    handled on the device. None: wait on a CPU, where that is free, and with a loss scale, which depends on them.
    """
    ranks, scale = ranks or Ranks(), scale or LossScale()
    if waits is None:
        waits = scale.active or forward_process.device.type == "cpu"
    measured, keys, bad_samples = [], [], 0
    if copy is not None:
        copy.copy_weights()
    for number, batch in enumerate(batches, 1):
        torch.manual_seed(randomness.seed_for(forward_process.seed, batch.position, randomness.DROPOUT_LAYERS))
        with gradient_sync(network, number == count):
            with compute():
                noised = forward_process(batch)
                with autocast():
                    loss = forward_process.loss(network if copy is None else copy.network, noised)
            (loss.total.mean() / count * scale.value).backward()  # averages over ranks
        if copy is not None:
            copy.accumulate_gradients()
        measured.append(torch.stack([loss.total.detach(), loss.eps_mse, noised.times_B.to(loss.total.dtype)]))
        keys += batch.keys
        bad_samples += batch.skipped

    parameters = [parameter for parameter in network.parameters() if parameter.grad is not None]
    total = total_norm(parameters)
    own = torch.stack(measured)  # [count, 3, samples]
    flags = send(torch.tensor([bad_samples, stop()], dtype=own.dtype), own.device)
    numbers = ranks.gather(torch.cat([own.flatten(), (total / scale.value).to(own.dtype)[None], flags]))
    losses = numbers[:, : own.numel()].reshape(-1, *own.shape)[:, :, 0]
    if waits:
        grad_norm, overflowed = clip_gradients(parameters, clip_norm, scale.value, total), False
        all_losses = bool(losses.isfinite().all())
        if all_losses and math.isfinite(grad_norm):
            optimizer.step()
            scale.record_success()
        else:
            overflowed = all_losses and scale.record_overflow()
        overflows = torch.full_like(numbers[:, :1], float(overflowed))
    else:
        # Multiplying non-finite gradients by 0 would not remove them, so the optimizer has to skip the update itself.
        finite = losses.isfinite().all() & numbers[:, -3].isfinite().all()
        optimizer.step((clip_norm / (total + 1e-6)).clamp(max=1.0), finite)
        overflows = torch.zeros_like(numbers[:, :1])
    optimizer.zero_grad()
    numbers, arrived = fetch(torch.cat([numbers, overflows], 1))
    return PendingStep(numbers, (len(measured), own.shape[-1]), keys, ranks, scale, arrived)


def total_norm(parameters: list[nn.Parameter]) -> Tensor:
    """Return the norm of the concatenated gradients, a scalar on the device."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    total = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
    if isinstance(total, DTensor):
        total = total.full_tensor()  # each rank has only its own shards
    return total


def clip_gradients(parameters: list[nn.Parameter], limit: float, scale: float, total: Tensor) -> float:
    """Divide gradients of norm `total` by `scale`, clip them to norm `limit`, and return the norm before clipping.

    Waits for the device. torch's clip_grad_norm_ would multiply every gradient even if none is clipped.
    """
    norm = total.item()
    # One pass does both: clipping the scaled gradient to `limit` also removes the scale.
    if norm > limit * scale:
        nn.utils.clip_grads_with_norm_(parameters, limit, total)
    elif scale != 1 and math.isfinite(norm):
        torch._foreach_div_([parameter.grad for parameter in parameters if parameter.grad is not None], scale)
    return norm / scale


def _nonfinite(keys: list[str], own: Tensor, losses: list[float], ranks: Ranks) -> str:
    """Describe the non-finite loss or gradient and its samples. keys, own: keys and losses of this rank's samples."""
    bad = [key for key, loss in zip(keys, own.tolist(), strict=True) if not math.isfinite(loss)]
    if found := [key for some in ranks.gather_objects(bad) for key in some]:
        return f"the loss is not finite for {_listed(found)}"
    everything = [key for some in ranks.gather_objects(keys) for key in some]
    return f"the gradient is not finite, with finite losses, in a batch of {_listed(everything)}"


def _listed(keys: list[str], most: int = 8) -> str:
    return ", ".join(keys[:most]) + (f" and {len(keys) - most} more" if len(keys) > most else "")
