"""The training step."""

import math
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from imagen.train import randomness
from imagen.train.noising import Batch, Noising
from imagen.train.optim import Optimizers
from imagen.train.parallel import last_backward
from imagen.train.ranks import Ranks
from imagen.train.scaling import LossScale


@dataclass(frozen=True)
class StepResult:
    """What happened, of the whole batch: the same on every rank."""

    losses: list[float]  # by sample, as are the next two, in the order of their positions
    eps_mse: list[float]
    times: list[float]
    grad_norm: float  # before clipping
    bad_samples: int  # that the loader replaced
    stop: bool  # some rank was asked to stop
    problem: str | None  # what was not finite, naming samples; None: everything was
    overflowed: bool = False  # the loss scale was too large: the step was skipped

    @property
    def applied(self) -> bool:
        """Whether the weights changed."""
        return self.problem is None and not self.overflowed


def training_step(
    network: nn.Module,
    batches: Iterable[Batch],
    count: int,
    noising: Noising,
    optimizer: Optimizers,
    *,
    clip_norm: float,
    autocast: Callable[[], AbstractContextManager],
    ranks: Ranks | None = None,
    stop: Callable[[], bool] = lambda: False,
    working: Callable[[], AbstractContextManager] = nullcontext,
    scale: LossScale | None = None,
) -> StepResult:
    """Forward and backward over this rank's `count` micro-batches of one size, clip, update; no update if a loss or the
    gradient is not finite on any rank.

    The gradient is that of the mean loss over all samples of all ranks, however they are split. stop: whether
    this rank was asked to. working: around what each rank does on its own, for who measures it. scale: of the loss,
    for float16; changed by what happens.
    """
    ranks, scale = ranks or Ranks(), scale or LossScale()
    measured, keys, bad_samples = [], [], 0
    for number, batch in enumerate(batches, 1):
        torch.manual_seed(randomness.seed_for(noising.seed, batch.position, randomness.DROPOUT_LAYERS))
        with last_backward(network, number == count):
            with working():
                noised = noising(batch)
                with autocast():
                    loss = noising.loss(network, noised)
            (loss.total.mean() / count * scale.value).backward()  # ranks are averaged on the way
        measured.append(torch.stack([loss.total.detach(), loss.eps_mse, noised.t_B.to(loss.total)]))
        keys += batch.keys
        bad_samples += batch.skipped
    grad_norm = clip_gradients(network, clip_norm, scale.value)

    own = torch.stack(measured)  # [count, 3, samples]
    # Micro-batch by micro-batch, each from the first rank to the last: the order of the positions.
    losses, eps_mse, times = ranks.gather(own).permute(2, 1, 0, 3).flatten(1).tolist()
    flags = ranks.gather(torch.tensor([bad_samples, stop()], device=own.device)).sum(0).tolist()
    problem, overflowed = None, False
    if all(map(math.isfinite, (grad_norm, *losses))):
        optimizer.step()
        scale.held()
    else:
        overflowed = all(map(math.isfinite, losses)) and scale.overflowed()
        problem = None if overflowed else _nonfinite(keys, own[:, 0].flatten(), losses, ranks)
    optimizer.zero_grad()
    return StepResult(losses, eps_mse, times, grad_norm, flags[0], flags[1] > 0, problem, overflowed)


def clip_gradients(network: nn.Module, limit: float, scale: float = 1.0) -> float:
    """Divide the gradient by `scale`, then shorten it to norm `limit` if it is longer; return its norm before that.

    The step's one wait for the device. torch's clip_grad_norm_ goes over every gradient once more even where nothing
    is to be clipped.
    """
    parameters = [parameter for parameter in network.parameters() if parameter.grad is not None]
    total = nn.utils.get_total_norm([parameter.grad for parameter in parameters if parameter.grad is not None])
    if isinstance(total, DTensor):
        total = total.full_tensor()  # of sharded gradients, each rank has seen its own part
    norm = total.item()
    # One pass for both: the limit is that of the scaled gradient, and what is left of the scale goes with it.
    if norm > limit * scale:
        nn.utils.clip_grads_with_norm_(parameters, limit, total)
    elif scale != 1 and math.isfinite(norm):
        torch._foreach_div_([parameter.grad for parameter in parameters if parameter.grad is not None], scale)
    return norm / scale


def _nonfinite(keys: list[str], own: Tensor, losses: list[float], ranks: Ranks) -> str:
    """Say what is not finite, and in which samples. keys, own: of this rank's samples, the keys and the losses."""
    guilty = [key for key, loss in zip(keys, own.tolist(), strict=True) if not math.isfinite(loss)]
    if found := [key for some in ranks.gather_objects(guilty) for key in some]:
        return f"the loss is not finite for {_listed(found)}"
    everything = [key for some in ranks.gather_objects(keys) for key in some]
    return f"the gradient is not finite, with finite losses, in a batch of {_listed(everything)}"


def _listed(keys: list[str], most: int = 8) -> str:
    return ", ".join(keys[:most]) + (f" and {len(keys) - most} more" if len(keys) > most else "")
