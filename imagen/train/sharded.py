"""Parameters whose rows lie on several ranks: DTensors as `fully_shard` makes them, sharded on dimension 0.

The mesh is one dimension of shards, or two: replicas, and shards within each. Plain tensors, of one process or of
DDP, are whole everywhere; every function here takes them too, and does nothing to them.
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
    """This rank's rows, sharing memory with `tensor`; possibly none."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def local_gradient(parameter: Tensor) -> Tensor:
    """The gradient of this rank's rows, sharing memory with it."""
    assert parameter.grad is not None
    return local(parameter.grad)


def whole(tensor: Tensor) -> Tensor:
    """All rows, on every rank: all ranks must call it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def placed_like(like: Tensor, tensor: Tensor) -> Tensor:
    """`tensor` as `like` lies: of a whole one, which every rank has, each rank keeps its rows. No communication."""
    if isinstance(like, DTensor) and not isinstance(tensor, DTensor):
        tensor = tensor.to(local(like).device)
        return distribute_tensor(tensor, like.device_mesh, like.placements, src_data_rank=None)
    return tensor


def replicated_like(like: Tensor, tensor: Tensor) -> Tensor:
    """`tensor`, which every rank has, for operations on it and on sharded ones together."""
    if not isinstance(like, DTensor):
        return tensor
    return DTensor.from_local(tensor, like.device_mesh, [Replicate()] * like.device_mesh.ndim, run_check=False)


def zero_rows(like: Tensor, shape: Sequence[int]) -> Tensor:
    """Zeros of `shape`, whose rows (dimension 0) lie where the rows of `like` do."""
    if isinstance(like, DTensor):
        return dtensor_zeros(*shape, dtype=like.dtype, device_mesh=like.device_mesh, placements=like.placements)
    return torch.zeros(*shape, dtype=like.dtype, device=like.device)


def summed_over_rows(parts: Sequence[Tensor], parameters: Sequence[Tensor]) -> list[Tensor]:
    """Sums over each rank's rows of a parameter, added up to sums over all rows: one all-reduce for all of them."""
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


def each_matrix_whole(function: Callable[[Tensor], Tensor], stack_NoI: Tensor, like: Tensor) -> Tensor:
    """function(stack), for a function of whole matrices, of which this rank has the rows that it has of `like`.

    The N matrices are dealt out to the ranks of the mesh's shards, so that each is worked on once, not once a rank.
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


def each_matrix_by_one(
    function: Callable[[Tensor], Tensor], stacks_NOI: Sequence[Tensor], copies: dist.ProcessGroup
) -> list[Tensor]:
    """function(stack) of every stack, for a function of matrices, which all processes of `copies` have alike.

    The matrices are dealt out to the processes by what they cost, and the results, of one dtype, exchanged at once.
    """
    rank, size = dist.get_rank(copies), dist.get_world_size(copies)
    dealt: list[list[tuple[int, int]]] = [[] for _ in range(size)]  # (stack, matrix) of each process
    load = [0] * size
    matrices = [(stack, row) for stack, stack_NOI in enumerate(stacks_NOI) for row in range(len(stack_NOI))]
    shapes = [stack_NOI.shape[1:] for stack_NOI in stacks_NOI]
    for stack, row in sorted(matrices, key=lambda matrix: -shapes[matrix[0]].numel() * min(shapes[matrix[0]])):
        idle = load.index(min(load))
        dealt[idle].append((stack, row))
        load[idle] += shapes[stack].numel() * min(shapes[stack])

    done = []
    for stack, stack_NOI in enumerate(stacks_NOI):
        if rows := [row for other, row in sorted(dealt[rank]) if other == stack]:
            done.append(function(stack_NOI[rows]))
    longest = max(sum(shapes[stack].numel() for stack, _ in share) for share in dealt)
    dtype = function(stacks_NOI[0][:0]).dtype
    own = torch.zeros(longest, dtype=dtype, device=stacks_NOI[0].device)
    if done:
        flat = torch.cat([result.flatten() for result in done])
        own[: len(flat)] = flat
    shares = [torch.empty_like(own).view(torch.uint8) for _ in range(size)]  # gloo does not know every dtype
    dist.all_gather(shares, own.view(torch.uint8), group=copies)

    results = [
        torch.empty(len(stack_NOI), *shapes[stack], dtype=dtype, device=own.device)
        for stack, stack_NOI in enumerate(stacks_NOI)
    ]
    for share, bytes_ in zip(dealt, shares, strict=True):
        parts = bytes_.view(dtype)[: sum(shapes[stack].numel() for stack, _ in share)]
        sizes = [shapes[stack].numel() for stack, _ in sorted(share)]
        for (stack, row), part in zip(sorted(share), parts.split(sizes), strict=True):
            results[stack][row] = part.view(shapes[stack])
    return results


def free_gathered(model: nn.Module) -> None:
    """Make all parameters those of this rank's rows again: after a forward pass without backward, some are whole."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()
