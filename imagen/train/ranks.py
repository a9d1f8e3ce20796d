"""The ranks of a distributed run, and the collectives that training uses."""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, NoReturn, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from imagen.devices import default_device, set_up
from imagen.errors import UserError
from imagen.torchrun import check_rendezvous, read_launch

T = TypeVar("T")

# The first rank may index a large data set or write an export while the others wait.
TIMEOUT = timedelta(minutes=60)
# Messages of gloo and NCCL for a lost process.
_LOST = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "remote process exited")


class ReportedElsewhere(UserError):
    """A user error that another rank reports: this rank exits silently with the same code."""


@dataclass(frozen=True)
class Ranks:
    """This process's rank and device among the processes that train together. One process needs no process group."""

    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    rank: int = 0
    world_size: int = 1

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def on_first(self, function: Callable[[], T]) -> T:
        """Call `function` on the first rank only, and return its result (picklable) or raise its UserError on all."""
        if self.world_size == 1:
            return function()
        answer: list[Any] = [None, None]
        if self.is_first:
            try:
                answer[0] = function()
            except UserError as error:
                answer[1] = str(error)
        dist.broadcast_object_list(answer, src=0, device=torch.device("cpu"))
        if answer[1] is not None:
            raise UserError(answer[1]) if self.is_first else ReportedElsewhere(answer[1])
        return answer[0]

    def fail(self, message: str) -> NoReturn:
        """Raise UserError on all ranks, but report it on the first one only. All ranks call this together."""
        raise UserError(message) if self.is_first else ReportedElsewhere(message)

    def gather(self, values: Tensor) -> Tensor:
        """Return every rank's `values`, [world_size, *shape]; shape and dtype must be equal on all ranks."""
        if self.world_size == 1:
            return values[None]
        gathered = [torch.empty_like(values) for _ in range(self.world_size)]
        dist.all_gather(gathered, values.contiguous())
        return torch.stack(gathered)

    def gather_objects(self, value: T) -> list[T]:
        """Return every rank's `value` (picklable), in the order of the ranks."""
        if self.world_size == 1:
            return [value]
        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value)
        return values


@contextmanager
def process_group(device: torch.device | str | None = None) -> Iterator[Ranks]:
    """Join the process group that torchrun started; without torchrun, yield a single rank.

    Exits silently with code 2 if another rank reports a user error, and with a message and code 1 if the connection to
    another rank is lost.

    device: default: the NVIDIA GPU with this process's local rank; otherwise Apple's GPU for a single rank, or the CPU.
    """
    _, world_size, local = read_launch()
    if device is None:
        other = default_device() if world_size == 1 else "cpu"
        device = torch.device("cuda", local) if torch.cuda.is_available() else torch.device(other)
    device = torch.device(device)
    if device.type == "cuda":
        if device.index is None:
            device = torch.device("cuda", local)
        if device.index >= torch.cuda.device_count():
            raise UserError(
                f"process {local} of this host has no GPU: there are {torch.cuda.device_count()}; "
                "start as many processes as there are GPUs (torchrun --nproc-per-node)"
            )
        set_up(device)
    if dist.is_initialized():  # by a program that uses this package as a library
        yield Ranks(device, dist.get_rank(), dist.get_world_size())
        return
    if world_size == 1:
        yield Ranks(device)
        return
    # gloo in addition to NCCL: a background thread writes checkpoints from tensors on the CPU.
    backend, bound = ("cpu:gloo,cuda:nccl", device) if device.type == "cuda" else ("gloo", None)
    check_rendezvous()
    try:
        store, rank, world_size = next(dist.rendezvous("env://", timeout=TIMEOUT))
    except (RuntimeError, ValueError, OSError) as error:
        address = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        raise UserError(f"cannot connect to the first rank at {address}: {str(error).splitlines()[0]}") from None
    # NOTE torchrun uses one store for all attempts, which still contains the addresses of killed ranks, so each attempt
    # needs its own keys. Machines count attempts differently: with several machines, torchrun must not share the store
    # (TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1, see docs/howto/scale.md).
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") if os.environ.get("GROUP_WORLD_SIZE") == "1" else "0"
    store = dist.PrefixStore(f"attempt {attempt}", store)
    arguments: dict[str, Any] = {"store": store, "rank": rank, "world_size": world_size, "device_id": bound}
    dist.init_process_group(backend, timeout=TIMEOUT, **arguments)
    try:
        yield Ranks(device, rank, world_size)
    except ReportedElsewhere:
        sys.exit(2)
    except RuntimeError as error:
        if not any(words in str(error) for words in _LOST):
            raise
        print(
            f"imagen: rank {rank} lost the connection to another rank; the message of that rank gives the reason",
            file=sys.stderr,
            flush=True,
        )
        os._exit(1)  # threads waiting for the lost rank would prevent a normal exit
    dist.destroy_process_group()
