"""Operations on parameters that are sharded by rows: DTensors of `fully_shard`, sharded on dimension 0.

The mesh has one dimension (shards) or two (replicas, and shards within each). All functions also accept plain tensors
of a single process or of DDP. These have all rows on every rank, so they need no communication.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor
from torch.distributed.tensor import zeros as dtensor_zeros


def local(tensor: Tensor) -> Tensor:
    """Return this rank's rows, possibly none. The result shares memory with `tensor`."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def local_gradient(parameter: Tensor) -> Tensor:
    """Return the gradient of this rank's rows. The result shares memory with `parameter.grad`."""
    assert parameter.grad is not None
    return local(parameter.grad)


def full_tensor(tensor: Tensor) -> Tensor:
    """Gather all rows on every rank. All ranks call this together."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def distribute_like(like: Tensor, tensor: Tensor) -> Tensor:
    """Shard `tensor`, which every rank has in full, like `like`, without communication."""
    if isinstance(like, DTensor) and not isinstance(tensor, DTensor):
        tensor = tensor.to(local(like).device)
        return distribute_tensor(tensor, like.device_mesh, like.placements, src_data_rank=None)
    return tensor


def replicate_like(like: Tensor, tensor: Tensor) -> Tensor:
    """Replicate `tensor`, which is equal on all ranks, on the mesh of `like`, so that operations can combine them."""
    if not isinstance(like, DTensor):
        return tensor
    return DTensor.from_local(tensor, like.device_mesh, [Replicate()] * like.device_mesh.ndim, run_check=False)


def sharded_zeros(like: Tensor, shape: Sequence[int]) -> Tensor:
    """Return zeros of `shape`, sharded on dimension 0 like `like`."""
    if isinstance(like, DTensor):
        return dtensor_zeros(*shape, dtype=like.dtype, device_mesh=like.device_mesh, placements=like.placements)
    return torch.zeros(*shape, dtype=like.dtype, device=like.device)


def sum_over_ranks(parts: Sequence[Tensor], parameters: Sequence[Tensor]) -> list[Tensor]:
    """Add up the ranks' sums over their own rows, with one all-reduce for all parameters.

    parts[i]: this rank's sum over its rows of parameters[i]. Returns the totals on every rank.
    """
    sums = list(parts)
    together: dict[object, list[int]] = defaultdict(list)
    for index, parameter in enumerate(parameters):
        if isinstance(parameter, DTensor):
            together[parameter.device_mesh, parameter.placements, parts[index].dtype].append(index)
    for indices in together.values():
        like = parameters[indices[0]]
        assert isinstance(like, DTensor)
        flat = torch.cat([parts[index].flatten() for index in indices])
        sharded = [Partial() if placement.is_shard() else Replicate() for placement in like.placements]
        flat = DTensor.from_local(flat, like.device_mesh, sharded, run_check=False).full_tensor()
        for index, total in zip(indices, flat.split([parts[i].numel() for i in indices]), strict=True):
            sums[index] = total.view_as(parts[index])
    return sums


def map_full_matrices(function: Callable[[Tensor], Tensor], stack_NoI: Tensor, like: Tensor) -> Tensor:
    """Apply `function`, which needs full matrices, to a stack of N matrices [O, I] that are sharded like `like`.

    stack_NoI: this rank's rows of each matrix; the result has the same rows. The ranks of a replica divide the N
    matrices among themselves, so each matrix is computed once per replica.
    """
    if not isinstance(like, DTensor):
        return function(stack_NoI)
    mesh, shape = like.device_mesh, torch.Size((len(stack_NoI), len(like), stack_NoI.shape[2]))
    stride = (shape[1] * shape[2], shape[2], 1)
    by_row, by_matrix = (
        [Shard(dimension) if placement.is_shard() else Replicate() for placement in like.placements]
        for dimension in (1, 0)
    )
    rows = DTensor.from_local(stack_NoI, mesh, by_row, run_check=False, shape=shape, stride=stride)
    matrices = function(rows.redistribute(placements=by_matrix).to_local())
    matrices = DTensor.from_local(matrices, mesh, by_matrix, run_check=False, shape=shape, stride=stride)
    return matrices.redistribute(placements=by_row).to_local()


def distribute_matrices(
    function: Callable[[Tensor], Tensor], stacks_NOI: Sequence[Tensor], replicas: dist.ProcessGroup
) -> list[Tensor]:
    """Apply `function` to stacks of matrices that are equal on all ranks of `replicas`; each rank computes a share.

    Matrices are assigned by estimated cost, the most expensive first. One all-gather exchanges the results; they all
    have the same dtype.
    """
    rank, size = dist.get_rank(replicas), dist.get_world_size(replicas)
    assigned: list[list[tuple[int, int]]] = [[] for _ in range(size)]  # (stack, matrix) of each rank
    load = [0] * size
    matrices = [(stack, row) for stack, stack_NOI in enumerate(stacks_NOI) for row in range(len(stack_NOI))]
    shapes = [stack_NOI.shape[1:] for stack_NOI in stacks_NOI]
    for stack, row in sorted(matrices, key=lambda matrix: -shapes[matrix[0]].numel() * min(shapes[matrix[0]])):
        least = load.index(min(load))
        assigned[least].append((stack, row))
        load[least] += shapes[stack].numel() * min(shapes[stack])

    done = []
    for stack, stack_NOI in enumerate(stacks_NOI):
        if rows := [row for other, row in sorted(assigned[rank]) if other == stack]:
            done.append(function(stack_NOI[rows]))
    longest = max(sum(shapes[stack].numel() for stack, _ in share) for share in assigned)
    dtype = function(stacks_NOI[0][:0]).dtype
    own = torch.zeros(longest, dtype=dtype, device=stacks_NOI[0].device)
    if done:
        flat = torch.cat([result.flatten() for result in done])
        own[: len(flat)] = flat
    shares = [torch.empty_like(own).view(torch.uint8) for _ in range(size)]  # gloo does not support every dtype
    dist.all_gather(shares, own.view(torch.uint8), group=replicas)

    results = [
        torch.empty(len(stack_NOI), *shapes[stack], dtype=dtype, device=own.device)
        for stack, stack_NOI in enumerate(stacks_NOI)
    ]
    for share, bytes_ in zip(assigned, shares, strict=True):
        parts = bytes_.view(dtype)[: sum(shapes[stack].numel() for stack, _ in share)]
        sizes = [shapes[stack].numel() for stack, _ in sorted(share)]
        for (stack, row), part in zip(sorted(share), parts.split(sizes), strict=True):
            results[stack][row] = part.view(shapes[stack])
    return results


def reshard(model: nn.Module) -> None:
    """Free gathered parameters: after a forward pass without a backward pass, some modules still hold all rows."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()
