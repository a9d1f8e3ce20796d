"""Build a model in several sharded layouts, and set gradients that are equal in all of them."""

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from imagen.train.sharded import distribute_like, full_tensor


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv_in = nn.Conv2d(4, 40, 3)
        self.norm = nn.GroupNorm(4, 40)
        self.conv = nn.Conv2d(40, 36, 3)
        self.same = nn.Linear(40 * 9, 36)  # the shape of `conv` as a matrix
        self.uneven = nn.Linear(36, 45, bias=False)
        self.few = nn.Linear(45, 3)  # fewer rows than ranks

    def forward(self, x_B4HW):
        h_BC = self.conv(self.norm(self.conv_in(x_B4HW))).mean((2, 3))
        return self.few(self.uneven(h_BC + self.same.bias) + self.same.weight.mean())


def make_model(layout="plain"):
    """Build the model. layout: plain, fsdp (one replica across all ranks) or hsdp (two replicas)."""
    torch.manual_seed(0)
    model = Net()
    if layout == "fsdp":
        fully_shard(model, mesh=init_device_mesh("cpu", (dist.get_world_size(),)))
    elif layout == "hsdp":
        shape = (2, dist.get_world_size() // 2)
        fully_shard(model, mesh=init_device_mesh("cpu", shape, mesh_dim_names=("replicate", "shard")))
    return model


def set_gradients(model, step):
    """Set the gradients of one step (1, 2, ...). Their scales differ widely and some are zero."""
    generator = torch.Generator().manual_seed(step)
    for index, parameter in enumerate(model.parameters()):
        gradient = torch.randn(parameter.shape, generator=generator) * 10.0 ** (index % 5 - 3)
        gradient[-1] = 0
        parameter.grad = distribute_like(parameter, gradient)


def weights(model):
    """Return copies of all parameters by name, gathered from their shards."""
    return {name: full_tensor(parameter.detach()).clone() for name, parameter in model.named_parameters()}
