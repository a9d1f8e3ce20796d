"""Detect operations that would make the CPU wait for a GPU, using the meta device in place of a GPU."""

from contextlib import contextmanager, nullcontext
from unittest import mock

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from imagen import devices
from imagen.accounting.gpu_kernels import attend
from imagen.models import layers

META = torch.device("meta")
# Operations with a result size that depends on values on the device.
SIZED = ("nonzero", "masked_select", "unique", "_unique2", "bincount", "repeat_interleave")

# Prefixes of operations that launch no kernel.
SILENT = ("empty", "new_empty", "detach", "_unsafe_view", "_reshape_alias")


class NoSyncMode(TorchDispatchMode):
    """Fails at operations that synchronise: reading a value, copying to the CPU, copying from unpinned memory.

    Counts the operations that launch a kernel; views and allocations do not.
    """

    def __init__(self):
        super().__init__()
        self.operations = 0
        self.names = {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = function._overloadpacket.__name__
        tensors = [arg for arg in args if isinstance(arg, Tensor)]
        if any(tensor.is_meta for tensor in tensors):
            assert name not in ("_local_scalar_dense", "item", "equal", "is_nonzero"), (
                f"{function} reads a value from the device"
            )
            assert name not in SIZED, f"{function} has a result size that depends on values"
        if name == "_to_copy":
            to = kwargs.get("device") or args[0].device
            self.check_copy(function, args[0], torch.device(to), kwargs.get("non_blocking", False))
        elif name == "copy_":
            self.check_copy(function, args[1], args[0].device, args[2] if len(args) > 2 else kwargs.get("non_blocking"))
        out = function(*args, **kwargs)
        results = [value for value in (out if isinstance(out, (tuple, list)) else [out]) if isinstance(value, Tensor)]
        alias = any(a.alias_info is not None and not a.alias_info.is_write for a in function._schema.arguments)
        on_device = any(tensor.is_meta for tensor in [*tensors, *results]) or _lists_meta(args)
        if on_device and not alias and not name.startswith(SILENT):
            self.operations += 1
            self.names[name] = self.names.get(name, 0) + 1
        return out

    def check_copy(self, function, source, to, non_blocking):
        if source.device.type == to.type:
            return
        assert to.type == "meta", f"{function}: a copy to the CPU synchronises"
        assert non_blocking, f"{function}: a blocking copy to the device"
        assert source.untyped_storage()._cdata in PINNED, f"{function}: a copy from unpinned memory"


def _lists_meta(args):
    return any(isinstance(a, (list, tuple)) and any(isinstance(t, Tensor) and t.is_meta for t in a) for a in args)


PINNED = {}  # by storage address; holds the tensors, so that no address is reused


@contextmanager
def meta_device_as_gpu():
    """Treat the meta device as a GPU inside the block: pin memory for it, and use our kernels."""

    def pin(tensor, device):
        if device.type != "meta":
            return tensor
        copy = tensor.clone()
        PINNED[copy.untyped_storage()._cdata] = copy
        return copy

    uses_triton = lambda device: device.type == "meta"  # noqa: E731
    autocast = torch.autocast
    with_meta = lambda kind, *a, **k: nullcontext() if kind == "meta" else autocast(kind, *a, **k)  # noqa: E731
    with (
        mock.patch.object(devices, "pin", pin),
        mock.patch.object(torch, "autocast", with_meta),
        mock.patch.object(layers, "attend", attend),  # one kernel, which torch does not select for meta tensors
        mock.patch("imagen.kernels.uses_triton", uses_triton),
        mock.patch("imagen.train.optim.FUSED_DEVICES", ("meta",)),
        mock.patch("torch.optim.adam._device_dtype_check_for_fused", lambda *_: None),
    ):
        yield
    PINNED.clear()
