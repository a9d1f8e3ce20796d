"""Test compiled networks on several ranks: one graph (per block if sharded), and the gradient of the eager network."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from ranks import run_on_ranks
from torch._dynamo.utils import counters
from toy import UNET

from imagen.models import compiling
from imagen.models.unet import UNet
from imagen.train import parallel as parallel_module
from imagen.train.config import ParallelConfig
from imagen.train.parallel import build_mesh, parallelize
from imagen.train.ranks import process_group
from imagen.train.sharded import full_tensor

LAYOUTS = {
    "ddp, full": ParallelConfig(compile=True, checkpointing="full"),
    "fsdp": ParallelConfig(compile=True, shard=2),
    "fsdp, full": ParallelConfig(compile=True, shard=2, checkpointing="full"),
}


def gradients(config, compiled):
    with process_group() as ranks:
        torch.manual_seed(0)
        unet = UNet(replace(UNET, middle=True))
        with torch.no_grad():
            for parameter in unet.parameters():
                parameter.add_(0.05 * torch.randn_like(parameter))
        # Inductor's code generation would take a minute.
        parallel_module.compile_module = partial(compiling.compile_module, backend="aot_eager")
        parallel_module.compile_function = partial(compiling.compile_function, backend="aot_eager")
        parallel_module.should_compile = lambda device, wanted: compiled
        mesh = build_mesh(config, "cpu", ranks.world_size)
        network = parallelize(unet, config, mesh, ranks.world_size)
        for _ in range(2):  # DDP rebuilds its buckets after the first pass
            torch.manual_seed(ranks.rank)
            x, text = torch.randn(2, 3, 16, 16), torch.randn(2, 5, 8)
            mask = torch.ones(2, 5, dtype=torch.bool)
            unet.zero_grad()
            network(x, torch.full((2,), 500.0), text=text, text_mask=mask).square().mean().backward()
        found = [full_tensor(parameter.grad).clone() for parameter in unet.parameters()]
        return found, counters["stats"]["unique_graphs"]


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
def test_compiled_gradients_equal_eager_ones(layout):
    plain, none = run_on_ranks(2, gradients, LAYOUTS[layout], False, timeout=240)[0]
    compiled, graphs = run_on_ranks(2, gradients, LAYOUTS[layout], True, timeout=240)[0]
    assert none == 0 < graphs
    for one, other in zip(compiled, plain, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_compiling_is_the_default_on_nvidia_gpus_only(monkeypatch):
    for there, expected in ((True, True), (False, False)):
        monkeypatch.setattr(compiling, "HAS_TRITON", there)
        assert compiling.should_compile("cuda", None) is expected
        assert compiling.should_compile("cpu", None) is compiling.should_compile("mps", None) is False
        assert compiling.should_compile("cpu", True) is True and compiling.should_compile("cuda", False) is False


def test_the_recompile_limit_allows_a_graph_per_shape():
    compiling.raise_recompile_limit()
    assert torch._dynamo.config.recompile_limit >= compiling.MAX_GRAPHS
