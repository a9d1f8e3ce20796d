"""What lives, is computed and is sent, operation by operation: the one module here that knows torch's private parts.

A dispatch mode sees each operation of forward pass, backward pass and optimizer, after sharded tensors have been taken
apart into the rank's own. Storages are followed, not tensors: views cost nothing, and what is freed is known when it
happens. What a kernel allocates for itself and frees before it returns is not seen. Works on fake tensors and on real
ones.
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

# parameters, gradients, optimizer, ema: a rank's own, for as long as training lasts.
# casts: parameters in the network's number format. communication: what collectives read and write, so gathered
# parameters and their whole gradients, too. activations: made in a forward pass, or again in the backward pass; and the
# batch. temporary: gradients of activations, and whatever else a step makes. other: the rest that was there before.
KINDS = (
    *("parameters", "gradients", "optimizer", "ema"),
    *("casts", "communication", "activations", "temporary", "other"),
)

# How often a ring of n ranks makes each of them send the bytes of the operation's first argument.
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
    watcher: Any = None  # the weak reference that tells of its end


@dataclass(frozen=True)
class Window:
    """What happened between two moments, on this rank."""

    before: int  # bytes that live at the beginning
    totals: np.ndarray  # bytes that live after each operation that changed it
    phases: list[str]  # of each operation: forward, backward, recomputation or update
    at_peak: dict[str, int]  # by kind, after the first operation with most of them
    flops: dict[tuple[int, str], int]  # by part and phase; a product and a sum are two
    sent: dict[tuple[int, str, str], int]  # bytes, by part, collective and name of the group of ranks

    @property
    def peak(self) -> int:
        return int(self.totals.max())

    @property
    def phase(self) -> str:
        """When that was."""
        return self.phases[int(self.totals.argmax())]


class Ledger(TorchDispatchMode):
    """Counts inside `with ledger:`, which must begin before the first tensor that matters is made.

    A fake tensor that is asked for its number answers 1, so that code which logs or branches on numbers runs.
    """

    def __init__(self) -> None:
        super().__init__()
        self.part = 0  # to be set by whoever runs a step: which micro-batch this is,
        self.updating = False  # and whether all backward passes are over
        self._live: dict[int, _Storage] = {}
        self._parameters: set[int] = set()
        self._phases: list[str] = []  # of each moment in a window: an operation that allocated or freed
        self._changes: list[tuple[int, _Storage, int]] = []  # number of the moment, bytes more or less
        self._flops: dict[tuple[int, str], int] = defaultdict(int)
        self._sent: dict[tuple[int, str, str], int] = defaultdict(int)
        self._patches = _Patches(self)
        self.paused = False
        self.one_moment = False  # of whatever happens, only the outcome counts

    def __enter__(self) -> "Ledger":
        self._patches.start()
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._patches.stop()

    def mark(self, kind: str, tensors: Iterable[Tensor]) -> int:
        """Those are of that kind, from their beginning. Returns the bytes of their storages on this rank."""
        storages = {}
        for tensor in tensors:
            storage = (tensor._local_tensor if isinstance(tensor, DTensor) else tensor).untyped_storage()
            entry = self.see(storage, kind)
            entry.kind, entry.marked = kind, True
            storages[storage._cdata] = entry
        if kind == "parameters":
            self._parameters |= set(storages)
        return sum(entry.bytes for entry in storages.values())

    @contextmanager
    def window(self) -> Iterator[list[Window]]:
        """What happens inside the block: the list holds it afterwards."""
        self._phases, self._changes = [], []
        self._flops, self._sent = defaultdict(int), defaultdict(int)
        for entry in self._live.values():
            if not entry.marked:
                entry.kind = "other"
        before = [(0, entry, entry.bytes) for entry in self._live.values()]
        result: list[Window] = []
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
        result.append(Window(held, totals, self._phases, at_peak, dict(self._flops), dict(self._sent)))

    def see(self, storage: torch.UntypedStorage, kind: str) -> _Storage:
        """Note a storage, or its new size."""
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
            return NotImplemented  # what it does to the rank's own tensors comes here in its turn
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
                entry = self.see(tensor.untyped_storage(), kind)
                if kind == "communication" and not entry.marked:
                    entry.kind = kind
        if formula := flop_registry.get(func._overloadpacket):
            self._flops[self.part, phase] += formula(*args, **kwargs, out_val=out)
        if func.namespace in ("c10d", "_c10d_functional"):
            self._count_sent(func, args)
        if not self.one_moment and self._changes and self._changes[-1][0] == len(self._phases):
            self._phases.append(phase)
        return out

    def _phase(self) -> str:
        if torch._C._current_graph_task_id() != -1:  # inside the engine that runs a backward pass
            return "recomputation" if torch.is_grad_enabled() else "backward"
        return "update" if self.updating else "forward"

    def _kind(self, func: Any, args: Any, phase: str) -> str:
        if func.namespace in ("fsdp", "c10d", "_c10d_functional"):
            return "communication"
        if func is torch.ops.aten._to_copy.default and args[0].untyped_storage()._cdata in self._parameters:
            return "casts"
        return "activations" if phase in ("forward", "recomputation") else "temporary"

    def _count_sent(self, func: Any, args: Any) -> None:
        if (ring := _RINGS.get(func._overloadpacket.__name__)) is None:
            return
        name, factor = ring
        group = _group(args)
        size = sum(tensor.numel() * tensor.element_size() for tensor in _tensors(args[0]))
        self._sent[self.part, name, group.group_name] += round(size * factor(group.size()))


class _Patches:
    """What a dispatch mode cannot see, or should not."""

    def __init__(self, ledger: Ledger):
        resize, propagate = torch.UntypedStorage.resize_, ShardingPropagator._propagate_tensor_meta_non_cached

        def resize_and_tell(storage: torch.UntypedStorage, size: int) -> torch.UntypedStorage:
            """How gathered parameters come and go."""
            result = resize(storage, size)
            if not ledger.paused:
                ledger.see(storage, "temporary")
            return result

        def propagate_unseen(*args: Any) -> Any:
            """How a sharded result is shaped is found out with fake tensors of the whole size, which no rank has."""
            ledger.paused, before = True, ledger.paused
            try:
                return propagate(*args)
            finally:
                ledger.paused = before

        self._patches = (
            mock.patch.object(torch.UntypedStorage, "resize_", resize_and_tell),
            mock.patch.object(ShardingPropagator, "_propagate_tensor_meta_non_cached", propagate_unseen),
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
    """The ranks of a collective, out of its arguments."""
    for arg in args:
        if isinstance(arg, torch.ScriptObject) and "ProcessGroup" in str(arg._type()):
            return dist.ProcessGroup.unbox(arg)
    return _resolve_process_group(next(arg for arg in reversed(args) if isinstance(arg, str)))  # type: ignore[arg-type]
