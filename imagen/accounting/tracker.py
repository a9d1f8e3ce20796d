"""Track live memory, FLOPs and collectives of one rank, operation by operation.

A dispatch mode intercepts each operation of the forward pass, the backward pass and the optimizer, after DTensors are
unwrapped to local tensors. It tracks storages, not tensors, so views cost nothing and frees are recorded when they
happen. Memory that a kernel allocates and frees internally is not counted. Works on fake and on real tensors.

This module uses private APIs of torch.
"""

import weakref
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.distributed.distributed_c10d import _resolve_process_group
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._sharding_prop import ShardingPropagator
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

# parameters, gradients, optimizer, ema: the rank's shards, allocated throughout training; teacher: weights that each
# rank has in full, in distillation.
# casts: parameters in low precision. communication: buffers of collectives, including gathered parameters and unsharded
# gradients. activations: allocated in the forward pass or its recomputation; includes the batch. temporary: gradients
# of activations, and everything else that a step allocates. other: everything else allocated before the interval.
KINDS = (
    *("parameters", "gradients", "optimizer", "ema", "teacher"),
    *("casts", "communication", "activations", "temporary", "other"),
)

# Bytes that each of n ranks sends in a ring, as a multiple of the operation's first argument.
_RINGS = {
    "allreduce_": ("all-reduce", lambda n: 2 * (n - 1) / n),
    "all_reduce": ("all-reduce", lambda n: 2 * (n - 1) / n),
    "_allgather_base_": ("all-gather", lambda n: (n - 1) / n),  # the gathered tensor comes first
    "_reduce_scatter_base_": ("reduce-scatter", lambda n: n - 1),  # the rank's share comes first
}


@dataclass(eq=False)
class _Storage:
    bytes: int
    kind: str
    marked: bool = False
    watcher: Any = None  # weak reference whose callback records that the storage was freed


@dataclass(frozen=True)
class TrackedInterval:
    """Memory, FLOPs and traffic of this rank during an interval of a run."""

    before: int  # live bytes at the beginning
    totals: np.ndarray  # live bytes after each operation that allocated or freed memory
    phases: list[str]  # phase of each such operation: distillation, forward, backward, recomputation or update
    at_peak: dict[str, int]  # live bytes by kind, at the first operation that reaches the peak
    flops: dict[tuple[int, str], int]  # by micro-batch and phase; a multiply-add counts as two
    sent: dict[tuple[int, str, str], int]  # bytes by micro-batch, collective and name of the process group

    @property
    def peak(self) -> int:
        """Largest number of live bytes."""
        return int(self.totals.max())

    @property
    def phase(self) -> str:
        """Phase of the peak."""
        return self.phases[int(self.totals.argmax())]


class ResourceTracker(TorchDispatchMode):
    """Tracks memory, FLOPs and traffic inside `with tracker:`.

    Enter the context before the first tensor to be counted is allocated. `item()` of a fake tensor returns 1, so that
    code that logs values or branches on them runs.
    """

    def __init__(self) -> None:
        super().__init__()
        # The caller sets these during a step.
        self.micro_batch = 0  # index of the micro-batch
        self.updating = False  # whether all backward passes are done
        self.distilling = False  # whether the teacher is evaluated
        self.flop_factor = 1.0  # FLOPs count this many times, for operations that represent fewer or more
        self._live: dict[int, _Storage] = {}
        self._parameters: set[int] = set()
        self._phases: list[str] = []  # phase of each event: an operation that allocated or freed memory
        self._changes: list[tuple[int, _Storage, int]] = []  # (number of the event, storage, change in bytes)
        self._flops: dict[tuple[int, str], int] = defaultdict(int)
        self._sent: dict[tuple[int, str, str], int] = defaultdict(int)
        self._patches = _Patches(self)
        self.paused = False
        self.merge_events = False  # count all operations as one event, so that only their net change matters

    def __enter__(self) -> "ResourceTracker":
        self._patches.start()
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._patches.stop()

    def mark(self, kind: str, tensors: Iterable[Tensor]) -> int:
        """Set the kind of the tensors' storages, from their allocation on. Return their bytes on this rank."""
        storages = {}
        for tensor in tensors:
            storage = (tensor._local_tensor if isinstance(tensor, DTensor) else tensor).untyped_storage()
            entry = self.track(storage, kind)
            entry.kind, entry.marked = kind, True
            storages[storage._cdata] = entry
        if kind == "parameters":
            self._parameters |= set(storages)
        return sum(entry.bytes for entry in storages.values())

    @contextmanager
    def interval(self) -> Iterator[list[TrackedInterval]]:
        """Record the operations inside the block. Yields a list; after the block it contains the interval."""
        self._phases, self._changes = [], []
        self._flops, self._sent = defaultdict(int), defaultdict(int)
        for entry in self._live.values():
            if not entry.marked:
                entry.kind = "other"
        before = [(0, entry, entry.bytes) for entry in self._live.values()]
        result: list[TrackedInterval] = []
        yield result
        changes = before + self._changes
        at, kinds, deltas = (
            np.array(column)
            for column in zip(*((n, KINDS.index(entry.kind), delta) for n, entry, delta in changes), strict=True)
        )
        totals = np.bincount(at, deltas, len(self._phases)).cumsum()[: len(self._phases)]
        peak = int(totals.argmax())
        by_kind = np.bincount(kinds[at <= peak], deltas[at <= peak], len(KINDS))
        at_peak = dict(zip(KINDS, by_kind.astype(int).tolist(), strict=True))
        held = sum(size for _, _, size in before)
        result.append(TrackedInterval(held, totals, self._phases, at_peak, dict(self._flops), dict(self._sent)))

    def track(self, storage: torch.UntypedStorage, kind: str) -> _Storage:
        """Start tracking a storage, or record its new size."""
        key, size = storage._cdata, storage.nbytes()
        entry = self._live.get(key)
        if entry is None:
            entry = self._live[key] = _Storage(0, kind)
            entry.watcher = weakref.ref(storage, lambda _: self._forget(key))
        if size != entry.bytes:
            self._changes.append((len(self._phases), entry, size - entry.bytes))
            entry.bytes = size
        return entry

    def _forget(self, key: int) -> None:
        entry = self._live.pop(key)
        self._changes.append((len(self._phases), entry, -entry.bytes))
        self._parameters.discard(key)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(issubclass(kind, DTensor) for kind in types):
            return NotImplemented  # DTensor dispatches to local tensors, and those operations are intercepted
        kwargs = kwargs or {}
        if func is torch.ops.aten._local_scalar_dense.default and isinstance(args[0], FakeTensor):
            return {torch.bool: True}.get(args[0].dtype, 1.0 if args[0].is_floating_point() else 1)
        out = func(*args, **kwargs)
        if self.paused:
            return out
        phase = self._phase()
        kind = self._kind(func, args, phase)
        tensors = tree_leaves((out, args, kwargs)) if kind == "communication" else _tensors(out)
        for tensor in tensors:
            if isinstance(tensor, Tensor) and not isinstance(tensor, DTensor):
                entry = self.track(tensor.untyped_storage(), kind)
                if kind == "communication" and not entry.marked:
                    entry.kind = kind
        if formula := flop_registry.get(func._overloadpacket):
            self._flops[self.micro_batch, phase] += round(self.flop_factor * formula(*args, **kwargs, out_val=out))
        if func.namespace in ("c10d", "_c10d_functional"):
            self._count_sent(func, args)
        if not self.merge_events and self._changes and self._changes[-1][0] == len(self._phases):
            self._phases.append(phase)
        return out

    def _phase(self) -> str:
        if torch._C._current_graph_task_id() != -1:  # inside the autograd engine
            return "recomputation" if torch.is_grad_enabled() else "backward"
        if self.distilling:
            return "distillation"
        return "update" if self.updating else "forward"

    def _kind(self, func: Any, args: Any, phase: str) -> str:
        if func.namespace in ("fsdp", "c10d", "_c10d_functional"):
            return "communication"
        if func is torch.ops.aten._to_copy.default and args[0].untyped_storage()._cdata in self._parameters:
            return "casts"
        return "activations" if phase in ("distillation", "forward", "recomputation") else "temporary"

    def _count_sent(self, func: Any, args: Any) -> None:
        if (ring := _RINGS.get(func._overloadpacket.__name__)) is None:
            return
        name, factor = ring
        group = _group(args)
        size = sum(tensor.numel() * tensor.element_size() for tensor in _tensors(args[0]))
        self._sent[self.micro_batch, name, group.group_name] += round(size * factor(group.size()))


class _Patches:
    """Patches of torch for changes of memory that the dispatch mode misses, and operations that it must not count."""

    def __init__(self, tracker: ResourceTracker):
        resize, propagate = torch.UntypedStorage.resize_, ShardingPropagator._propagate_tensor_meta_non_cached

        def tracked_resize(storage: torch.UntypedStorage, size: int) -> torch.UntypedStorage:
            """Record a resize, which is how FSDP2 allocates and frees gathered parameters."""
            result = resize(storage, size)
            if not tracker.paused:
                tracker.track(storage, "temporary")
            return result

        def untracked_propagate(*args: Any) -> Any:
            """Skip sharding propagation, which runs on fake tensors of global shapes that no rank allocates."""
            tracker.paused, before = True, tracker.paused
            try:
                return propagate(*args)
            finally:
                tracker.paused = before

        self._patches = (
            mock.patch.object(torch.UntypedStorage, "resize_", tracked_resize),
            mock.patch.object(ShardingPropagator, "_propagate_tensor_meta_non_cached", untracked_propagate),
        )

    def start(self) -> None:
        for patch in self._patches:
            patch.start()

    def stop(self) -> None:
        for patch in self._patches:
            patch.stop()


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    return [part for part in value if isinstance(part, Tensor)] if isinstance(value, (tuple, list)) else []


def _group(args: Any) -> Any:
    """Return the process group in a collective's arguments."""
    for arg in args:
        if isinstance(arg, torch.ScriptObject) and "ProcessGroup" in str(arg._type()):
            return dist.ProcessGroup.unbox(arg)
    return _resolve_process_group(next(arg for arg in reversed(args) if isinstance(arg, str)))  # type: ignore[arg-type]
