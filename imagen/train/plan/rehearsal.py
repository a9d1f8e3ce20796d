"""A training step of one rank among many, of which there is none: the real model, spread as in training, of tensors
that have a shape but no numbers, in a group of processes that answers nothing."""

import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
import torch.nn.parallel.distributed as ddp
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.parallel import DistributedDataParallel

from imagen.accounting.gpu_kernels import gpu_kernels
from imagen.accounting.ledger import Ledger, Window
from imagen.data.loading.batches import Batch
from imagen.errors import UserError
from imagen.models.unet import UNet
from imagen.precision import autocast
from imagen.stage.loss import Noised, Noising
from imagen.train.config import Experiment
from imagen.train.ema import averages
from imagen.train.half import HalfCopy
from imagen.train.layout import named_weights, permuted_weights
from imagen.train.optim import build_optimizer
from imagen.train.parallel import ParallelConfig, build_mesh, parallelize, recompute
from imagen.train.ranks import Ranks
from imagen.train.state import materialise
from imagen.train.step import launch_step


@dataclass(frozen=True)
class Traced:
    """One step of a rank, of `micro_batches` micro-batches of `micro_batch` pictures, of which two were traced."""

    parallel: ParallelConfig
    micro_batch: int
    micro_batches: int
    window: Window
    groups: dict[str, str]  # name of the dimension of the mesh, by that of a group of ranks

    @property
    def flops(self) -> dict[str, int]:
        """Of a rank and step, by phase."""
        return _whole_step(self.window.flops, self.micro_batches)

    @property
    def sent(self) -> dict[tuple[str, str], int]:
        """Bytes of a rank and step, by collective and dimension of the mesh."""
        named = {(part, name, self.groups[group]): sent for (part, name, group), sent in self.window.sent.items()}
        return _whole_step(named, self.micro_batches)


def _whole_step(counted: dict[Any, int], micro_batches: int) -> dict[Any, int]:
    """All micro-batches but the last are like the first; the last one's part has the update, too."""
    total: dict[Any, int] = {}
    for (part, *rest), count in counted.items():
        key = tuple(rest) if len(rest) > 1 else rest[0]
        times = micro_batches - 1 if part == 0 and micro_batches > 1 else 1
        total[key] = total.get(key, 0) + times * count
    return total


class Rehearsal:
    """Inside `with`: one rank, ready to train. Steps of any size can be traced, one after another.

    held: bytes of its parameters, gradients, optimizer and averages. stored: bytes of a whole checkpoint's tensors.
    dtype: of the network's arithmetic; None: float32. gpu: the arithmetic is a GPU's, else a CPU's.
    """

    held: dict[str, int]
    stored: int

    def __init__(self, experiment: Experiment, world_size: int, *, dtype: torch.dtype | None, gpu: bool):
        self.experiment, self.world_size, self.dtype, self.gpu = experiment, world_size, dtype, gpu
        self.ledger = Ledger()
        self._stack = ExitStack()

    def __enter__(self) -> "Rehearsal":
        with ExitStack() as stack:
            stack.enter_context(_fake_group(self.world_size))
            mesh = build_mesh(self.experiment.parallel, "cpu", self.world_size)
            self.groups = _group_names(mesh, self.world_size)
            stack.enter_context(torch.random.fork_rng(devices=[]))
            stack.enter_context(_unchecked_ddp())
            stack.enter_context(FakeTensorMode())
            stack.enter_context(self.ledger)
            if self.gpu:
                stack.enter_context(gpu_kernels())
            self._set_up(mesh)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *error: Any) -> None:
        self._stack.__exit__(*error)

    def _set_up(self, mesh: Any) -> None:
        """What `Trainer` sets up."""
        experiment, ledger = self.experiment, self.ledger
        plain = replace(experiment.parallel, checkpointing="none", checkpoint_levels=(), compile=False)
        self.unet = UNet(experiment.stage.unet)
        if mesh is None:
            for parameter in self.unet.parameters():  # nn.Module.to cannot exchange fake ones
                if parameter.ndim == 4:
                    parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
        self.parameters = sum(parameter.numel() for parameter in self.unet.parameters())
        halved = self.gpu and self.dtype is torch.bfloat16
        self.copy = HalfCopy(self.unet, torch.bfloat16) if halved and self.world_size == 1 else None
        self.computing = (
            nullcontext if halved and (self.copy or mesh is not None) else partial(autocast, "cpu", self.dtype)
        )
        self.network = parallelize(self.unet, plain, mesh, self.world_size, dtype=self.dtype)
        if isinstance(self.network, DistributedDataParallel):
            self.network.register_comm_hook(None, _all_reduce)
        self.optimizer = build_optimizer(
            named_weights(self.unet), experiment.optim, permuted=permuted_weights(self.unet)
        )
        config = experiment.train
        kept = averages(self.unet, config.ema_decay, config.ema_decays, config.ema_sigma_rels)
        self.averages = list(kept.values())
        materialise(self.unet, self.optimizer)
        states = [state for part in self.optimizer.optimizers for state in part.state.values()]
        tensors = {
            "parameters": [*self.unet.parameters(), *self.unet.buffers()],
            "optimizer": [value for state in states for value in state.values()],
            "ema": [value for average in self.averages for value in average.weights.values()],
        }
        if self.copy is not None:
            tensors["casts"] = list(self.copy.network.parameters())
        self.held = {kind: ledger.mark(kind, those) for kind, those in tensors.items()}
        kept_on_disk = [tensor for kind, those in tensors.items() if kind != "casts" for tensor in those]
        self.stored = sum(tensor.numel() * tensor.element_size() for tensor in kept_on_disk)

    def trace(self, parallel: ParallelConfig, micro_batch: int) -> Traced:
        """A step, with that checkpointing, of this rank's share of `train.batch_size`, so many pictures at a time."""
        count = self.experiment.train.batch_size // self.world_size // micro_batch
        recompute(self.unet if self.copy is None else self.copy.network, parallel)
        noising = _AtOnce(
            self.ledger,
            self.experiment.stage,
            seed=0,
            batch_size=self.experiment.train.batch_size,
            device=torch.device("cpu"),
            unconditional_LD=None if self.experiment.text is None else torch.zeros(1, self.experiment.text.width),
            text_dropout=self.experiment.train.text_dropout,
            schedule=self.experiment.train.schedule,
        )
        optimizer = _Watched(self)
        self.ledger.updating = False
        with self.ledger.window() as windows:
            launch_step(
                self.network,
                self._batches(micro_batch, min(2, count)),
                min(2, count),
                noising,
                optimizer,  # type: ignore[arg-type]  # as much of an Optimizers as a step needs
                clip_norm=self.experiment.optim.clip_norm,
                autocast=self.computing,
                ranks=Ranks(world_size=self.world_size),
                copy=self.copy,
                waits=not self.gpu,
            )
            for average in self.averages:
                average.update(self.unet, 1)
        return Traced(parallel, micro_batch, count, windows[0], self.groups)

    def _batches(self, size: int, count: int) -> Iterator[Batch]:
        stage, text = self.experiment.stage, self.experiment.text
        side, channels = self.experiment.data.crop or stage.resolution, stage.unet.image_channels
        scale = 1 if stage.low_resolution is None else stage.resolution // stage.low_resolution
        for part in range(count):
            self.ledger.part = part
            yield Batch(
                position=part * size,
                keys=[""] * size,
                captions=[""] * size,
                image=torch.zeros(size, channels, side, side, dtype=torch.uint8),
                low_res=None
                if scale == 1
                else torch.zeros(size, channels, side // scale, side // scale, dtype=torch.uint8),
                text=None if text is None else torch.zeros(size, text.max_tokens, text.width),
                text_mask=None if text is None else torch.ones(size, text.max_tokens, dtype=torch.bool),
            )
        self.ledger.updating = True


class _AtOnce(Noising):
    """Noising as one moment: what it does picture by picture would make the moments of two sizes different ones."""

    def __init__(self, ledger: Ledger, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self._ledger = ledger

    def __call__(self, batch: Batch) -> Noised:
        self._ledger.one_moment = True
        try:
            return super().__call__(batch)
        finally:
            self._ledger.one_moment = False


class _Watched:
    """The optimizer, which tells the ledger what the gradients are."""

    def __init__(self, rehearsal: Rehearsal):
        self._rehearsal = rehearsal

    def step(self, factor: Tensor | None = None, finite: Tensor | None = None) -> None:
        gradients = [parameter.grad for parameter in self._rehearsal.unet.parameters()]
        marked = self._rehearsal.ledger.mark("gradients", [tensor for tensor in gradients if tensor is not None])
        self._rehearsal.held["gradients"] = marked
        self._rehearsal.optimizer.step(factor, finite)

    def zero_grad(self) -> None:
        self._rehearsal.optimizer.zero_grad()


@contextmanager
def _fake_group(world_size: int) -> Iterator[None]:
    """This process as the first of so many, of which the others are not there."""
    if world_size == 1:
        yield
        return
    if dist.is_initialized():
        raise UserError("a plan is made by one process alone: this one has joined others already")
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=world_size)
    try:
        yield
    finally:
        dist.destroy_process_group()


def _group_names(mesh: Any, world_size: int) -> dict[str, str]:
    if world_size == 1:
        return {}
    assert dist.group.WORLD is not None
    names: dict[str, str] = {dist.group.WORLD.group_name: "all"}
    for name in () if mesh is None else mesh.mesh_dim_names:
        names[mesh.get_group(name).group_name] = name
    return names


@contextmanager
def _unchecked_ddp() -> Iterator[None]:
    """DDP without what reads numbers: it begins by comparing shapes between ranks and sending the first one's weights,
    and after a step asks them all for the order in which gradients came, to fill buckets of the same size anew."""
    nothing = dict.fromkeys(("_verify_param_shape_across_processes", "_sync_module_states"), mock.DEFAULT)
    with (
        mock.patch.multiple(ddp, **nothing),
        mock.patch.object(dist.Reducer, "_rebuild_buckets", lambda self: False),
        warnings.catch_warnings(),
    ):
        warnings.filterwarnings("ignore", message="Grad strides do not match")  # of 1x1 convolutions: a copy of them
        yield


def _all_reduce(_: None, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
    """What DDP does with a bucket of gradients; the fake group's own promise holds no tensor."""
    dist.all_reduce(bucket.buffer())
    done: torch.futures.Future[Tensor] = torch.futures.Future()
    done.set_result(bucket.buffer())
    return done
