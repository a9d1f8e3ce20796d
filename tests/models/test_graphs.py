"""Check that torch.compile traces every network as one graph, without recompilation."""

from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from unets import STRUCTURES

from imagen import kernels
from imagen.data.loading.batches import Batch
from imagen.models.config import UNetConfig
from imagen.models.unet import UNet
from imagen.presets import PRESETS, preset
from imagen.stage.config import StageConfig
from imagen.stage.loss import ForwardProcess
from imagen.text.embeddings import pad_embeddings
from imagen.train.config import ParallelConfig
from imagen.train.parallel import apply_activation_checkpointing


def shortened(config: UNetConfig) -> UNetConfig:
    """Reduce to one block per level, or two if only the last attends. This keeps every kind of block."""
    levels = [replace(level, blocks=min(level.blocks, 1 + (level.attend == "last"))) for level in config.levels]
    return replace(config, levels=tuple(levels))


def distinct_structures() -> dict[str, UNetConfig]:
    """Return the presets' structures, without those that differ only in channels."""
    found: dict[object, tuple[str, UNetConfig]] = {}
    for name in PRESETS:
        config = shortened(preset(name).stage.unet)
        levels = tuple(replace(level, channels=2) for level in config.levels)
        widths = {"time_width": 1, "context_width": 1, "head_channels": 1, "stem_channels": None, "norm_groups": 1}
        wide = {"text_width": config.text_width and 1}
        found.setdefault(replace(config, levels=levels, **widths, **wide), (name, config))
    return dict(found.values())


def inputs(config: UNetConfig, device="meta"):
    side = config.total_stride * 4
    draw = lambda *shape: torch.randn(*shape, device=device)  # noqa: E731
    x, label = draw(2, config.image_channels, side, side), draw(2)
    cond = {}
    if config.text_width:
        cond = {"text": draw(2, 5, config.text_width), "text_mask": torch.ones(2, 5, dtype=torch.bool, device=device)}
    if config.low_res:
        cond |= {"low_res": x, "low_res_noise": label}
    return x, label, cond


@pytest.fixture(autouse=True)
def reset_dynamo():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


CONFIGS = {**{name: shortened(config) for name, config in STRUCTURES.items()}, **distinct_structures()}


@pytest.mark.slow
@pytest.mark.parametrize("name", CONFIGS)
def test_a_network_is_one_graph(name):
    """Checked in training with activation checkpointing, and in sampling with cached text."""
    config = CONFIGS[name]
    with torch.device("meta"):
        unet = UNet(config)
    x, label, cond = inputs(config)
    # The stages after dynamo handle the same operations in all networks, and would take most of the time.
    unet.compile(fullgraph=True, backend="aot_eager" if name in STRUCTURES else "eager", dynamic=False)
    apply_activation_checkpointing(unet, ParallelConfig(checkpointing="full"))
    unet(x, label, **cond).sum().backward()
    assert all(parameter.grad is not None for parameter in unet.parameters())
    if config.text_width:
        with torch.no_grad():
            cond["text"] = unet.cache_text(cond["text"], cond["text_mask"])
            assert unet(x, label, **cond).shape[0] == 2


def saved_bytes(unet, x, label, cond):
    """Return the bytes that a forward pass saves for the backward pass, without parameters."""
    own = {parameter.untyped_storage()._cdata for parameter in unet.parameters()}
    found = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            found[storage._cdata] = (storage.nbytes(), tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = unet(x, label, **cond).float().sum()
    loss.backward()
    return sum(size for size, _ in found.values())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["guided", "efficient"])
def test_a_compiled_network_saves_the_bytes_that_a_plan_counts(name, monkeypatch):
    """Uses our fused norms in bfloat16, as on GPUs. Inductor partitions the graph into forward and backward."""
    monkeypatch.setattr(kernels, "uses_triton", lambda device: True)
    config = STRUCTURES[name]
    unet = UNet(config).to(torch.bfloat16).to(memory_format=torch.channels_last)
    given = inputs(config, "cpu")
    plain = saved_bytes(unet, *given)
    unet.compile(fullgraph=True, backend="aot_eager_decomp_partition", dynamic=False)
    assert saved_bytes(unet, *given) == pytest.approx(plain, rel=0.01)


def test_ten_batches_of_different_captions_are_one_graph_with_the_losses_of_the_network():
    """As in training, each batch is padded to its longest caption, and some captions are dropped."""
    config = CONFIGS["guided"]
    stage = StageConfig(resolution=16, unet=config)
    null_LD = torch.zeros(1, config.text_width)
    noising = ForwardProcess(
        *(stage,),
        seed=0,
        batch_size=2,
        device=torch.device("cpu"),
        unconditional_LD=null_LD,
        text_dropout=0.3,
        text_length=12,
    )
    torch.manual_seed(0)
    unet = UNet(config)
    with torch.no_grad():
        for parameter in unet.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    plain = deepcopy(unet)
    counter = CompileCounterWithBackend("aot_eager")
    unet.compile(fullgraph=True, backend=counter, dynamic=False)
    for number in range(10):
        tokens = [torch.randn(length, config.text_width) for length in (1 + number, 10 - number)]
        text, mask = pad_embeddings(tokens)
        pictures = torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8)
        batch = Batch(2 * number, ["a", "b"], ["", ""], pictures, None, text, mask)
        noised = noising(batch)
        loss, expected = (noising.loss(network, noised).total for network in (unet, plain))
        torch.testing.assert_close(loss, expected)
        loss.mean().backward()
    assert counter.frame_count == 1
