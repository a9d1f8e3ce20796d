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
    """Result of a step for the whole batch: the same on every rank."""

    losses: list[float]  # per sample, as are the next two, in the order of their positions
    eps_mse: list[float]
    times: list[float]
    grad_norm: float  # before clipping
    bad_samples: int  # replaced by the loader
    stop: bool  # a rank was asked to stop
    problem: str | None  # what was not finite, with the samples' keys; None: everything was finite
    overflowed: bool = False  # the loss scale was too large: the step was skipped

    @property
    def applied(self) -> bool:
        """Whether the weights changed."""
        return self.problem is None and not self.overflowed


@dataclass
class PendingStep:
    """A step that the device may still be computing. All ranks call `result` in the same order of collectives."""

    numbers: Tensor  # [ranks, 3 x samples of a rank + 4], on the CPU once `arrived` returns
    shape: tuple[int, int]  # micro-batches, samples of each
    keys: list[str]  # of this rank's samples
    ranks: Ranks
    scale: LossScale
    arrived: Callable[[], object]  # waits until the numbers have been copied

    def result(self) -> StepResult:
        """Wait until the device has done the step, and return what happened."""
        self.arrived()
        count, samples = self.shape
        measured, (grad_norms, bad_samples, stops, overflows) = self.numbers[:, :-4], self.numbers[:, -4:].T.tolist()
        # Micro-batch by micro-batch, each from the first rank to the last: the order of the positions.
        losses, eps_mse, times = measured.reshape(-1, count, 3, samples).permute(2, 1, 0, 3).flatten(1).tolist()
        overflowed, problem = overflows[0] > 0, None
        if not overflowed and not all(map(math.isfinite, (grad_norms[0], *losses))):
            own = measured[self.ranks.rank].reshape(count, 3, samples)[:, 0].flatten()
            problem = _nonfinite(self.keys, own, losses, self.ranks)
        bad = int(sum(bad_samples))
        return StepResult(losses, eps_mse, times, grad_norms[0], bad, sum(stops) > 0, problem, overflowed)


def training_step(*arguments: Any, **options: Any) -> StepResult:
    """Run a step and wait for its result. Parameters as for `launch_step`."""
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

    The parameters do not change if a loss or the gradient is not finite on any rank. The gradient is that of the mean
    loss over all samples of all ranks, however they are divided.

    stop: whether this rank was asked to. compute: around the forward process and forward pass, to time them.
    scale: of the loss, for float16; updated by the step.
    copy: low-precision copy of `network`, which computes in its place.
    waits: whether the step waits for losses and gradient norm before the update; None: on a CPU, where that is free,
    and with a loss scale, which depends on them. Otherwise non-finite numbers are handled on the device.
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
            (loss.total.mean() / count * scale.value).backward()  # ranks are averaged on the way
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
            scale.held()
        else:
            overflowed = all_losses and scale.overflowed()
        overflows = torch.full_like(numbers[:, :1], float(overflowed))
    else:
        # A factor of 0 would not remove non-finite values: the optimizer has to skip the update itself.
        finite = losses.isfinite().all() & numbers[:, -3].isfinite().all()
        optimizer.step((clip_norm / (total + 1e-6)).clamp(max=1.0), finite)
        overflows = torch.zeros_like(numbers[:, :1])
    optimizer.zero_grad()
    numbers, arrived = fetch(torch.cat([numbers, overflows], 1))
    return PendingStep(numbers, (len(measured), own.shape[-1]), keys, ranks, scale, arrived)


def total_norm(parameters: list[nn.Parameter]) -> Tensor:
    """Return the norm of all gradients together, a scalar on the device."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    total = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
    if isinstance(total, DTensor):
        total = total.full_tensor()  # each rank has only its own shards
    return total


def clip_gradients(parameters: list[nn.Parameter], limit: float, scale: float, total: Tensor) -> float:
    """Divide gradients, whose norm is `total`, by `scale`, clip them to norm `limit`, and return their unclipped norm.

    Waits for the device. torch's clip_grad_norm_ would multiply every gradient even where none is clipped.
    """
    norm = total.item()
    # One pass for both: clipping the scaled gradient to `limit` also removes the scale.
    if norm > limit * scale:
        nn.utils.clip_grads_with_norm_(parameters, limit, total)
    elif scale != 1 and math.isfinite(norm):
        torch._foreach_div_([parameter.grad for parameter in parameters if parameter.grad is not None], scale)
    return norm / scale


def _nonfinite(keys: list[str], own: Tensor, losses: list[float], ranks: Ranks) -> str:
    """Describe what is not finite, and in which samples. keys, own: keys and losses of this rank's samples."""
    bad = [key for key, loss in zip(keys, own.tolist(), strict=True) if not math.isfinite(loss)]
    if found := [key for some in ranks.gather_objects(bad) for key in some]:
        return f"the loss is not finite for {_listed(found)}"
    everything = [key for some in ranks.gather_objects(keys) for key in some]
    return f"the gradient is not finite, with finite losses, in a batch of {_listed(everything)}"


def _listed(keys: list[str], most: int = 8) -> str:
    return ", ".join(keys[:most]) + (f" and {len(keys) - most} more" if len(keys) > most else "")
