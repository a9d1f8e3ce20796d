"""Test that no float64 tensor is created on a device, because Apple GPUs lack float64. Uses the meta device."""

from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from toy import UNET, experiment

from imagen import devices
from imagen.data.loading.batches import Batch
from imagen.diffusion.schedule import DiscreteCosine, ScheduleConfig
from imagen.models.unet import UNet
from imagen.stage.config import SamplingConfig
from imagen.stage.denoiser import build_conditioning
from imagen.stage.loss import ForwardProcess

META = torch.device("meta")


class NoDoubles(TorchDispatchMode):
    """Raises an error if an operation creates a float64 tensor outside the CPU."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, torch.Tensor) and leaf.device.type != "cpu":
                assert leaf.dtype != torch.float64, function
        return out


def test_the_mode_finds_float64():
    with pytest.raises(AssertionError), NoDoubles():
        torch.zeros(2, dtype=torch.float64).to(META)


@pytest.mark.parametrize("kind", ["cosine", "linear", "discrete_cosine"])
@pytest.mark.parametrize("low_resolution", [None, 8])
def test_training(kind, low_resolution, monkeypatch):
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # a meta device has no autocast
    what = experiment(unet=replace(UNET, low_res=low_resolution is not None), low_resolution=low_resolution)
    stage = replace(what.stage, schedule=ScheduleConfig(kind=kind), low_res_schedule=ScheduleConfig(kind=kind))
    batch = Batch(
        position=0,
        keys=["a", "b"],
        captions=["", ""],
        image=torch.zeros(2, 3, 16, 16, dtype=torch.uint8),
        low_res=None if low_resolution is None else torch.zeros(2, 3, 8, 8, dtype=torch.uint8),
        text=torch.zeros(2, 3, 8),
        text_mask=torch.ones(2, 3, dtype=torch.bool),
    )
    noising = ForwardProcess(
        stage, seed=0, batch_size=2, device=META, text_dropout=0.5, unconditional_LD=torch.zeros(1, 8)
    )
    unet = UNet(stage.unet).to(META)
    with NoDoubles():
        loss = noising.loss(unet, noising(batch)).total
        loss.mean().backward()
    assert loss.device.type == "meta"


@pytest.mark.parametrize("kind", ["cosine", "discrete_cosine"])
def test_conditioning_in_sampling(kind, monkeypatch):
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())
    what = experiment(unet=replace(UNET, low_res=True), low_resolution=8)
    stage = replace(what.stage, low_res_schedule=ScheduleConfig(kind=kind))
    low_res, texts = torch.zeros(2, 3, 8, 8, dtype=torch.uint8), [torch.zeros(3, 8)] * 2
    with NoDoubles():
        build_conditioning(
            stage,
            SamplingConfig(),
            size=(16, 16),
            device=META,
            texts=texts,
            negatives=texts,
            low_BChw=low_res,
            augmentation_eps=lambda: torch.zeros(2, 3, 16, 16, device=META),
        )


def test_labels_of_the_discrete_schedule_are_its_steps_in_float32_too():
    steps = torch.arange(1000)
    logsnr = DiscreteCosine()((steps.double() + 0.5) / 1000)
    assert torch.equal(DiscreteCosine().label(logsnr), steps.float())
    assert torch.equal(DiscreteCosine().label(logsnr.float()), steps.float())


@pytest.mark.parametrize(
    "cuda, mps, expected", [(True, False, "cuda"), (True, True, "cuda"), (False, True, "mps"), (False, False, "cpu")]
)
def test_the_default_device(monkeypatch, cuda, mps, expected):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    assert devices.default_device() == expected
