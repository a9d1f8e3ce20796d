"""Adam with both moments stored in 8 bits, by block-wise dynamic quantization (arXiv 2110.02861)."""

import math
from collections.abc import Callable, Iterable
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from imagen.train.nonfinite import decay_, mask_gradients
from imagen.train.sharded import local, local_gradient, sharded_zeros

BLOCK = 256  # the largest number of elements with a common scale
MIN_SIZE = 4096  # smaller parameters gain little, and are often the sensitive ones
CHUNK = 2**24  # elements that are in float32 at the same time
TINY = torch.finfo(torch.float32).tiny
_STATE = ("steps", "exp_avg", "exp_avg_scale", "exp_avg_sq", "exp_avg_sq_scale")


def is_large(parameter: Tensor) -> bool:
    """Return whether `Adam8bit` accepts the parameter, which is full or sharded."""
    return parameter.ndim >= 2 and parameter.numel() >= MIN_SIZE


def dynamic_values(signed: bool) -> list[float]:
    """Return the 256 values of the dynamic data type, ascending: from -0.993 to 1 if signed, else from 0 to 1.

    Each decade from [1e-7, 1e-6] to [0.1, 1] is divided into twice as many intervals as the one below; the values are
    their centres, of both signs if signed, and 0 and 1. Small numbers thus have fewer significant bits.
    """
    values = [0.0, 1.0]
    for decade in range(7):
        count = 2**decade if signed else 2 ** (decade + 1)
        centres = [10.0 ** (decade - 6) * (0.1 + 0.9 * (i + 0.5) / count) for i in range(count)]
        values += centres
        if signed:
            values += [-value for value in centres]
    return sorted(values)


class DynamicQuantizer:
    """Quantizes blocks of numbers to 8-bit codes of the dynamic data type, relative to each block's largest magnitude.

    An unsigned block only has numbers >= 0, and only 0 becomes 0: other numbers are rounded to the smallest positive
    value or above. Otherwise Adam would divide by nearly 0 where a second moment is small beside others of its block.

    The nearest value is found by a table, 7 times as fast on a CPU as by `torch.bucketize`: among numbers with the same
    upper 16 bits there is at most one limit between two values.
    """

    def __init__(self, *, signed: bool, device: torch.device):
        values = dynamic_values(signed)
        limits = [(low + high) / 2 for low, high in pairwise(values)]
        if not signed:
            limits[0] = 0.0
        self.values = torch.tensor(values, dtype=torch.float32, device=device)
        self.limits = torch.tensor([*limits, math.inf], dtype=torch.float32, device=device)
        bits = torch.arange(2**16, dtype=torch.int32, device=device)
        bits = torch.where(bits < 2**15, bits << 16, bits << 16 | 0xFFFF)
        self.lowest = torch.bucketize(bits.view(torch.float32), self.limits[:-1]).to(torch.uint8)

    def quantize(self, x_RKW: Tensor) -> tuple[Tensor, Tensor]:
        """Return codes [R, K, W], uint8, and scales [R, K] of K blocks of W numbers in each of R rows."""
        scales_RK = x_RKW.abs().amax(2)
        relative_RKW = x_RKW / scales_RK.clamp(min=TINY).unsqueeze(2)
        bits = (relative_RKW.view(torch.int32) >> 16).bitwise_and_(0xFFFF)
        codes_RKW = _look_up(self.lowest, bits)
        return codes_RKW.add_(relative_RKW > _look_up(self.limits, codes_RKW)), scales_RK

    def dequantize(self, codes_RKW: Tensor, scales_RK: Tensor) -> Tensor:
        """Return the numbers of codes [R, K, W] and scales [R, K]."""
        return _look_up(self.values, codes_RKW).mul_(scales_RK.unsqueeze(2))


def _look_up(table: Tensor, indices: Tensor) -> Tensor:
    return table.index_select(0, indices.reshape(-1).int()).view(indices.shape)


class Adam8bit(torch.optim.Optimizer):
    """Adam with decoupled decay (1711.05101), for float32 parameters with at least two dimensions and 4096 elements.

    m <- beta1 m + (1 - beta1) g;  v <- beta2 v + (1 - beta2) g^2
    W <- (1 - lr decay) W - lr (m / (1 - beta1^t)) / (sqrt(v / (1 - beta2^t)) + eps)

    The moments are float32 during a step, and quantized after it. The state has 8-bit codes of the parameter's shape,
    and a scale for each block: K = ceil(n / 256) equal parts of a row of n elements, so scales are [rows, K]. Elements
    of a convolution's row are counted as [h, w, I], in its order in memory; other memory formats give the same result.
    Parameters may be sharded by rows (see sharded.py). Codes and scales are then sharded in the same way, and a step
    needs no communication.

    A change of less than half an interval is lost. v thus rises as in Adam, but falls only with the largest v of its
    block: where gradients become much smaller while those of a neighbour do not, updates are smaller than Adam's.
    """

    def __init__(
        self,
        parameters: Iterable[Tensor],
        lr: float,
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(parameters, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})
        parameters = [parameter for group in self.param_groups for parameter in group["params"]]
        if not all(map(is_large, parameters)):
            raise ValueError("Adam8bit only updates large matrices: use another optimizer for the rest")
        # Created here, because copying them to a GPU in a step would wait for it.
        self.quantizers = {
            device: [DynamicQuantizer(signed=signed, device=device) for signed in (True, False)]
            for device in {parameter.device for parameter in parameters}
        }

    @torch.no_grad()
    def step(  # type: ignore[override]
        self,
        closure: Callable[[], Any] | None = None,
        *,
        factor: Tensor | None = None,
        finite: Tensor | None = None,
    ) -> None:
        """Update the parameters. factor, finite: as for `Optimizers.step`."""
        for group in self.param_groups:
            trained = [parameter for parameter in group["params"] if parameter.grad is not None]
            if not trained:
                continue
            for parameter in trained:
                if not self.state[parameter]:
                    self.state[parameter].update(_new_state(parameter))
            gradients = [local_gradient(parameter) for parameter in trained]
            ok = mask_gradients(gradients, factor, finite)
            steps = [self.state[parameter]["steps"] for parameter in trained]
            torch._foreach_add_(steps, 1.0 if ok is None else [ok] * len(steps))
            counts = torch.stack(steps).clamp_(min=1)  # 0 if no step was finite yet
            first, second = (_one_minus_power(beta, counts) for beta in group["betas"])
            rates = group["lr"] / first if ok is None else ok * (group["lr"] / first)
            decay_([local(parameter) for parameter in trained], group["lr"] * group["weight_decay"], ok)
            numbers = zip(rates.unbind(), second.sqrt().unbind(), strict=True)
            for parameter, gradient, (rate, root) in zip(trained, gradients, numbers, strict=True):
                self._update(parameter, gradient, rate, root, group, finite)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state as torch does, which casts it to the parameters' dtype: restore the dtype of the codes.

        Raises ValueError if it is the state of another optimizer.
        """
        for state in state_dict["state"].values():
            if missing := sorted(set(_STATE) - set(state)):
                raise ValueError(f"not the state of Adam8bit: it lacks {', '.join(missing)}")
        super().load_state_dict(state_dict)
        for state in self.state.values():
            state |= {name: state[name].to(torch.uint8) for name in ("exp_avg", "exp_avg_sq")}

    def _update(
        self,
        parameter: Tensor,
        gradient: Tensor,
        rate: Tensor,
        root: Tensor,
        group: dict[str, Any],
        finite: Tensor | None,
    ) -> None:
        """Update one parameter and its moments, some rows at a time, to limit temporary memory."""
        state, (beta1, beta2) = self.state[parameter], group["betas"]
        names = ("exp_avg", "exp_avg_scale", "exp_avg_sq", "exp_avg_sq_scale")
        tensors = [local(parameter), gradient, *(local(state[name]) for name in names)]
        signed, unsigned = self.quantizers[parameter.device]
        rows = max(1, CHUNK // math.prod(parameter.shape[1:]))
        for weight, part, *stored in zip(*(tensor.split(rows) for tensor in tensors), strict=True):
            g_RKW = _to_blocks(part)
            m_codes, m_scales, v_codes, v_scales = stored
            m_RKW = signed.dequantize(_to_blocks(m_codes), m_scales).lerp_(g_RKW, 1 - beta1)
            v_RKW = unsigned.dequantize(_to_blocks(v_codes), v_scales).mul_(beta2)
            v_RKW.addcmul_(g_RKW, g_RKW, value=1 - beta2)
            _store(m_codes, m_scales, *signed.quantize(m_RKW), finite)
            _store(v_codes, v_scales, *unsigned.quantize(v_RKW), finite)
            m_RKW.div_(v_RKW.sqrt_().div_(root).add_(group["eps"])).mul_(rate)
            weight.sub_(_from_blocks(m_RKW, weight))


def _new_state(parameter: Tensor) -> dict[str, Tensor]:
    # A tensor on the device, so that no step synchronises. Not named "step": torch leaves such a tensor on the CPU when
    # it loads a state.
    state = {"steps": torch.zeros((), dtype=torch.float32, device=parameter.device)}
    blocks, _ = _blocks(parameter)
    for name in ("exp_avg", "exp_avg_sq"):
        state[name] = torch.zeros_like(parameter, dtype=torch.uint8)
        state[f"{name}_scale"] = sharded_zeros(parameter, (len(parameter), blocks))
    return state


def _one_minus_power(beta: float, counts: Tensor) -> Tensor:
    """Return 1 - beta^counts, also accurately if it is small."""
    return -torch.expm1(counts * (math.log(beta) if beta else -math.inf))


def _store(codes: Tensor, scales: Tensor, new_RKW: Tensor, new_RK: Tensor, finite: Tensor | None) -> None:
    """Replace a moment's codes and scales, unless `finite` is False."""
    for old, new in ((codes, _from_blocks(new_RKW, codes)), (scales, new_RK)):
        old.copy_(new if finite is None else torch.where(finite, new, old))


def _blocks(tensor: Tensor) -> tuple[int, int]:
    """Return the number K of blocks per row, and their width W. K W may be up to K - 1 more than the row's elements."""
    elements = math.prod(tensor.shape[1:])
    blocks = math.ceil(elements / BLOCK)
    return blocks, math.ceil(elements / blocks)


def _to_blocks(tensor: Tensor) -> Tensor:
    """Return rows [R, I, ...] as blocks [R, K, W], padded with zeros."""
    blocks, width = _blocks(tensor)
    rows = tensor.movedim(1, -1).flatten(1)  # a view of channels-last memory
    if padding := blocks * width - rows.shape[1]:
        rows = F.pad(rows, (0, padding))
    return rows.unflatten(1, (blocks, width))


def _from_blocks(blocks_RKW: Tensor, like: Tensor) -> Tensor:
    """Return blocks [R, K, W] as a tensor of the shape of `like`, without padding."""
    _, I, *kernel = like.shape  # noqa: E741
    rows = blocks_RKW.flatten(1)[:, : math.prod((I, *kernel))]
    return rows.unflatten(1, (*kernel, I)).movedim(-1, 1)
