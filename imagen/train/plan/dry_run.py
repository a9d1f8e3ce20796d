"""Dry run: one training step of one rank on fake tensors, to count memory, FLOPs and traffic.

Model, optimizer and step are those of training, distributed in the same way, in a fake process group in which
collectives do nothing.
"""

import math
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
from torch.distributed.fsdp import FSDPModule
from torch.nn.parallel import DistributedDataParallel

from imagen.accounting.gpu_kernels import gpu_kernels
from imagen.accounting.tracker import ResourceTracker, TrackedInterval
from imagen.cascade.memory import frozen_unet
from imagen.data.loading.batches import Batch
from imagen.errors import UserError
from imagen.models.unet import UNet
from imagen.precision import autocast
from imagen.stage.denoiser import build_predict
from imagen.stage.distillation import Distillation, Levels, divided_steps
from imagen.stage.loss import CleanBatch, ForwardProcess, NoisedBatch
from imagen.train.config import ParallelConfig
from imagen.train.ema import build_emas
from imagen.train.experiment import Experiment
from imagen.train.finetune import adapt
from imagen.train.layout import named_weights, permuted_weights
from imagen.train.low_precision import LowPrecisionCopy
from imagen.train.optim import build_optimizer
from imagen.train.parallel import apply_activation_checkpointing, build_mesh, parallelize
from imagen.train.ranks import Ranks
from imagen.train.shapes import largest_size
from imagen.train.state import create_optimizer_state, run_tensors
from imagen.train.step import launch_step


@dataclass(frozen=True)
class TracedStep:
    """One step of a rank with `micro_batches` micro-batches of `micro_batch` images; at most two were traced."""

    parallel: ParallelConfig
    micro_batch: int
    micro_batches: int
    interval: TrackedInterval
    groups: dict[str, str]  # name of the mesh dimension, by name of the process group

    @property
    def flops(self) -> dict[str, int]:
        """FLOPs per rank and step, by phase."""
        return _whole_step(self.interval.flops, self.micro_batches)

    @property
    def sent(self) -> dict[tuple[str, str], int]:
        """Bytes sent per rank and step, by collective and mesh dimension."""
        named = {(part, name, self.groups[group]): sent for (part, name, group), sent in self.interval.sent.items()}
        return _whole_step(named, self.micro_batches)


def _whole_step(counted: dict[Any, int], micro_batches: int) -> dict[Any, int]:
    """Scale counts to a whole step: all micro-batches but the last equal the first; the last includes the update."""
    total: dict[Any, int] = {}
    for (part, *rest), count in counted.items():
        key = tuple(rest) if len(rest) > 1 else rest[0]
        times = micro_batches - 1 if part == 0 and micro_batches > 1 else 1
        total[key] = total.get(key, 0) + times * count
    return total


class DryRun:
    """One rank that is set up for training, inside `with`. Steps with any micro-batch can be traced in sequence.

    held: bytes of its parameters, gradients, optimizer, EMAs and teacher. stored: bytes of the tensors of a full
        checkpoint.
    dtype: dtype in which the network computes; None: float32. gpu: model a GPU's kernels, else a CPU's.
    """

    held: dict[str, int]
    stored: int

    def __init__(self, experiment: Experiment, world_size: int, *, dtype: torch.dtype | None, gpu: bool):
        self.experiment, self.world_size, self.dtype, self.gpu = experiment, world_size, dtype, gpu
        self.tracker = ResourceTracker()
        distill, self.steps = experiment.distill, list[Levels]()
        if distill.teacher_steps and distill.teacher is not None:  # here, because fake tensors have no values
            self.steps = divided_steps(experiment.stage, distill.teacher, distill.teacher_steps)
        self._stack = ExitStack()

    def __enter__(self) -> "DryRun":
        with ExitStack() as stack:
            stack.enter_context(_fake_group(self.world_size))
            mesh = build_mesh(self.experiment.parallel, "cpu", self.world_size)
            self.groups = _group_names(mesh, self.world_size)
            stack.enter_context(torch.random.fork_rng(devices=[]))
            stack.enter_context(_unchecked_ddp())
            stack.enter_context(FakeTensorMode())
            stack.enter_context(self.tracker)
            if self.gpu:
                stack.enter_context(gpu_kernels())
            self._set_up(mesh)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *error: Any) -> None:
        self._stack.__exit__(*error)

    def _set_up(self, mesh: Any) -> None:
        """Set up model, optimizer and EMAs as `imagen.train.setup` does."""
        experiment, tracker = self.experiment, self.tracker
        plain = replace(experiment.parallel, checkpointing="none", checkpoint_levels=(), compile=False)
        self.unet = UNet(experiment.stage.unet)
        adapt(self.unet, experiment)
        if mesh is None:
            for parameter in self.unet.parameters():  # nn.Module.to cannot replace fake tensors
                if parameter.ndim == 4:
                    parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
        self.parameters = sum(parameter.numel() for parameter in self.unet.parameters())
        low_precision = self.gpu and self.dtype is torch.bfloat16
        self.copy = LowPrecisionCopy(self.unet, torch.bfloat16) if low_precision and self.world_size == 1 else None
        self.computing = (
            nullcontext if low_precision and (self.copy or mesh is not None) else partial(autocast, "cpu", self.dtype)
        )
        self.network = parallelize(self.unet, plain, mesh, self.world_size, dtype=self.dtype)
        if isinstance(self.network, DistributedDataParallel):
            self.network.register_comm_hook(None, _all_reduce)
        # The first all-gather of a module allocates its outputs one by one, later ones allocate them together. Doing
        # the first one here gives every step the same moments.
        for module in self.network.modules():
            if isinstance(module, FSDPModule):
                module.unshard()
                module.reshard()
        self.optimizer = build_optimizer(
            named_weights(self.unet), experiment.optim, permuted=permuted_weights(self.unet)
        )
        config = experiment.train
        emas = build_emas(self.unet, config.ema_decay, config.ema_decays, config.ema_sigma_rels)
        self.emas = list(emas.values())
        create_optimizer_state(self.unet, self.optimizer)
        states = [state for part in self.optimizer.optimizers for state in part.state.values()]
        tensors = {
            "parameters": [*self.unet.parameters(), *self.unet.buffers()],
            "optimizer": [value for state in states for value in state.values()],
            "ema": [value for ema in self.emas for value in ema.weights.values()],
        }
        if self.copy is not None:
            tensors["casts"] = list(self.copy.network.parameters())
        if self.steps:
            teacher, around = frozen_unet(experiment.stage.unet, self.dtype, self.gpu)
            tensors["teacher"] = [*teacher.parameters(), *teacher.buffers()]
            self.predict = build_predict(teacher, around)
        self.held = {kind: tracker.mark(kind, those) for kind, those in tensors.items()}
        saved = run_tensors(self.unet, emas, self.optimizer)
        stored = [tensor for named in saved.values() for tensor in named.values()]
        self.stored = sum(tensor.numel() * tensor.element_size() for tensor in stored)

    def trace(self, parallel: ParallelConfig, micro_batch: int) -> TracedStep:
        """Trace a step of this rank's share of `train.batch_size`, with this checkpointing and micro-batch."""
        count = self.experiment.train.batch_size // self.world_size // micro_batch
        apply_activation_checkpointing(self.unet if self.copy is None else self.copy.network, parallel)
        forward_process = self._forward_process()
        optimizer = _WatchedOptimizer(self)
        self.tracker.updating = False
        with self.tracker.interval() as intervals:
            launch_step(
                self.network,
                self._batches(micro_batch, min(2, count)),
                min(2, count),
                forward_process,
                optimizer,  # type: ignore[arg-type]  # has the methods that a step calls
                clip_norm=self.experiment.optim.clip_norm,
                autocast=self.computing,
                ranks=Ranks(world_size=self.world_size),
                copy=self.copy,
                waits=not self.gpu,
            )
            for ema in self.emas:
                ema.update(self.unet, 1)
        return TracedStep(parallel, micro_batch, count, intervals[0], self.groups)

    def _forward_process(self) -> ForwardProcess:
        stage, text, teacher = self.experiment.stage, self.experiment.text, self.experiment.distill.teacher
        options: dict[str, Any] = {
            "seed": 0,
            "batch_size": self.experiment.train.batch_size,
            "device": torch.device("cpu"),
            "unconditional_LD": None if text is None else torch.zeros(1, text.width),
            "text_dropout": self.experiment.train.text_dropout,
        }
        if self.steps and teacher is not None:
            return _FakeDistillation(self.tracker, stage, self.predict, teacher, self.steps, **options)
        return _FakeForwardProcess(self.tracker, stage, schedule=self.experiment.train.schedule, **options)

    def _batches(self, size: int, count: int) -> Iterator[Batch]:
        stage, text = self.experiment.stage, self.experiment.text
        (height, width), channels = largest_size(stage, self.experiment.data), stage.unet.image_channels
        scale = 1 if stage.low_resolution is None else stage.resolution // stage.low_resolution
        for part in range(count):
            self.tracker.micro_batch = part
            yield Batch(
                position=part * size,
                keys=[""] * size,
                captions=[""] * size,
                image=torch.zeros(size, channels, height, width, dtype=torch.uint8),
                low_res=None
                if scale == 1
                else torch.zeros(size, channels, height // scale, width // scale, dtype=torch.uint8),
                text=None if text is None else torch.zeros(size, text.max_tokens, text.width),
                text_mask=None if text is None else torch.ones(size, text.max_tokens, dtype=torch.bool),
            )
        self.tracker.updating = True


class _FakeForwardProcess(ForwardProcess):
    """Tracks the forward process as one moment, so that steps of all sizes have the same moments."""

    def __init__(self, tracker: ResourceTracker, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self._tracker = tracker

    def __call__(self, batch: CleanBatch) -> NoisedBatch:
        self._tracker.merge_events = True
        try:
            return super().__call__(batch)
        finally:
            self._tracker.merge_events = False


class _FakeDistillation(Distillation):
    """Tracks the teacher's steps, for all images those of the student's costliest step; FLOPs are the mean of steps."""

    def __init__(self, tracker: ResourceTracker, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self._tracker = tracker
        counts = {levels: self.evaluations(levels) for levels in self.steps}
        self._costliest = max(self.steps, key=lambda levels: counts[levels])
        self._mean = sum(counts.values()) / len(counts) / counts[self._costliest]

    def __call__(self, batch: CleanBatch) -> NoisedBatch:
        tracker = self._tracker
        tracker.distilling, tracker.flop_factor = True, self._mean
        try:
            return super().__call__(batch)
        finally:
            tracker.distilling, tracker.flop_factor = False, 1.0

    def groups(self, t_B: Tensor) -> Iterator[tuple[Levels, slice]]:
        """Yield groups as large as those of a micro-batch; fake times have no values."""
        size = math.ceil(self.batch_size / len(self.steps))
        for first in range(0, len(t_B), size):
            yield self._costliest, slice(first, min(first + size, len(t_B)))


class _WatchedOptimizer:
    """Wraps the optimizer, and marks the gradients in the tracker before the update."""

    def __init__(self, dry_run: DryRun):
        self._dry_run = dry_run

    def step(self, factor: Tensor | None = None, finite: Tensor | None = None) -> None:
        gradients = [parameter.grad for parameter in self._dry_run.unet.parameters()]
        marked = self._dry_run.tracker.mark("gradients", [tensor for tensor in gradients if tensor is not None])
        self._dry_run.held["gradients"] = marked
        self._dry_run.optimizer.step(factor, finite)

    def zero_grad(self) -> None:
        self._dry_run.optimizer.zero_grad()


@contextmanager
def _fake_group(world_size: int) -> Iterator[None]:
    """Make this process the first rank of a fake process group."""
    if world_size == 1:
        yield
        return
    if dist.is_initialized():
        raise UserError("`imagen plan` needs a single process without a process group; do not start it with torchrun")
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=world_size)
    try:
        yield
    finally:
        dist.destroy_process_group()


def _group_names(mesh: Any, world_size: int) -> dict[str, str]:
    """Return the names of the mesh dimensions by name of their process groups; "all" for the default group."""
    if world_size == 1:
        return {}
    assert dist.group.WORLD is not None
    names: dict[str, str] = {dist.group.WORLD.group_name: "all"}
    for name in () if mesh is None else mesh.mesh_dim_names:
        names[mesh.get_group(name).group_name] = name
    return names


@contextmanager
def _unchecked_ddp() -> Iterator[None]:
    """Skip the parts of DDP that read the contents of tensors.

    These are the initial exchange of shapes and weights, and the rebuilding of buckets after the first step.
    """
    nothing = dict.fromkeys(("_verify_param_shape_across_processes", "_sync_module_states"), mock.DEFAULT)
    with (
        mock.patch.multiple(ddp, **nothing),
        mock.patch.object(dist.Reducer, "_rebuild_buckets", lambda self: False),
        warnings.catch_warnings(),
    ):
        warnings.filterwarnings(
            "ignore", message="Grad strides do not match"
        )  # 1x1 convolutions: DDP copies their gradients
        yield


def _all_reduce(_: None, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
    """All-reduce a bucket of gradients, as DDP does; the future of the fake group's collective has no tensor."""
    dist.all_reduce(bucket.buffer())
    done: torch.futures.Future[Tensor] = torch.futures.Future()
    done.set_result(bucket.buffer())
    return done
