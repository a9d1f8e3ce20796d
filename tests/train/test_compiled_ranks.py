"""Compiled and spread over ranks: one graph (of each block, where it is sharded), and the gradient of the plain one."""

from functools import partial

import pytest
import torch
from ranks import run_on_ranks
from torch._dynamo.utils import counters
from toy import UNET

from imagen.models import compiling
from imagen.models.unet import UNet
from imagen.train import parallel as spreading
from imagen.train.parallel import ParallelConfig, build_mesh, parallelize
from imagen.train.ranks import process_group
from imagen.train.sharded import whole

LAYOUTS = {
    "ddp, full": ParallelConfig(compile=True, checkpointing="full"),
    "fsdp": ParallelConfig(compile=True, shard=2),
    "fsdp, full": ParallelConfig(compile=True, shard=2, checkpointing="full"),
}


def gradients(config, compiled):
    with process_group() as ranks:
        torch.manual_seed(0)
        unet = UNet(UNET)
        with torch.no_grad():
            for parameter in unet.parameters():
                parameter.add_(0.05 * torch.randn_like(parameter))
        # What inductor adds is code for a processor, which takes a minute to make.
        spreading.compile_module = partial(compiling.compile_module, backend="aot_eager")
        spreading.compile_function = partial(compiling.compile_function, backend="aot_eager")
        spreading.compiles = lambda device, wanted: compiled
        mesh = build_mesh(config, "cpu", ranks.world_size)
        network = parallelize(unet, config, mesh, ranks.world_size)
        for _ in range(2):  # DDP arranges its buckets anew after the first
            torch.manual_seed(ranks.rank)
            x, text = torch.randn(2, 3, 16, 16), torch.randn(2, 5, 8)
            mask = torch.ones(2, 5, dtype=torch.bool)
            unet.zero_grad()
            network(x, torch.full((2,), 500.0), text=text, text_mask=mask).square().mean().backward()
        return [whole(parameter.grad).clone() for parameter in unet.parameters()], counters["stats"]["unique_graphs"]


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
def test_compiled_gradients_are_those_of_the_plain_network(layout):
    plain, none = run_on_ranks(2, gradients, LAYOUTS[layout], False, timeout=240)[0]
    compiled, graphs = run_on_ranks(2, gradients, LAYOUTS[layout], True, timeout=240)[0]
    assert none == 0 < graphs
    for one, other in zip(compiled, plain, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_compiling_is_the_default_on_nvidia_gpus_alone(monkeypatch):
    for there, expected in ((True, True), (False, False)):
        monkeypatch.setattr(compiling, "TRITON", there)
        assert compiling.compiles("cuda", None) is expected
        assert compiling.compiles("cpu", None) is compiling.compiles("mps", None) is False
        assert compiling.compiles("cpu", True) is True and compiling.compiles("cuda", False) is False


def test_a_graph_for_each_shape_is_kept():
    compiling.prepare()
    assert torch._dynamo.config.recompile_limit >= compiling.GRAPHS
