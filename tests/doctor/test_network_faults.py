"""Faults planted in a trained run or cascade are found by name."""

import dataclasses
import json

import patients
import pytest
import torch
from patients import SIDE, changed_cascade, copy_run, discs, wrapped, write_shards
from torch import nn

from imagen.cascade import Cascade, SamplingConfig, Stage, StageConfig
from imagen.diffusion.objective import ObjectiveConfig
from imagen.models.config import Level, UNetConfig
from imagen.models.unet import UNet
from imagen.train import checkpoint
from imagen.train.checkpoint import CheckpointFolder, checkpoint_paths


def heads(name, w):
    return name.startswith("up.0.") and name.endswith("conv1.weight")


@pytest.mark.parametrize(
    "fault, change",
    [
        ("weights-not-finite", lambda name, w: w.where(w < w.max(), torch.nan) if heads(name, w) else w),
        ("weights-zero", lambda name, w: w * 0 if heads(name, w) else w),
        ("weights-constant", lambda name, w: w * 0 + 0.01 if heads(name, w) else w),
        ("weights-subnormal", lambda name, w: (w * 1e-3).half()),
        ("weights-beyond-float16", lambda name, w: w * 1e6 if heads(name, w) else w),
    ],
)
def test_weights(fault, change, healthy, tmp_path, found):
    cascade = changed_cascade(healthy.run, tmp_path / "cascade", change=change)
    report = found.report(cascade, "weights")
    (finding,) = report.findings
    assert (finding.name, finding.where) == (fault, f"stage {SIDE}")


def test_nan_weights_give_nan_samples(healthy, tmp_path, found):
    cascade = changed_cascade(healthy.run, tmp_path / "c", change=lambda name, w: w * torch.nan)
    report = found.report(cascade, data=healthy.shards)
    names = {finding.name for finding in report.findings}
    assert names == {"weights-not-finite", "samples-not-finite", "network-untrained"}
    json.dumps(report.to_json(), allow_nan=False)  # strict JSON


def test_activations_that_overflow_float16(healthy, tmp_path, found):
    cascade = changed_cascade(
        healthy.run, tmp_path / "c", change=lambda name, w: w * 1e5 if name == "norm_out.weight" else w
    )
    (finding,) = found.report(cascade, "activations").findings
    assert finding.name == "activations-overflow" and "--precision fp32" in finding.remedy


def untrained(prediction):
    """Return a cascade of a new network, which outputs zero."""
    torch.manual_seed(0)
    config = dataclasses.replace(patients.experiment(1).stage, objective=ObjectiveConfig(prediction=prediction))
    stage = Stage(config, UNet(config.unet).eval())
    return Cascade([stage], text=patients.TEXT, unconditional=torch.zeros(1, patients.WIDTH))


@pytest.mark.parametrize("prediction, effect", [("v", "samples-are-noise"), ("x0", "samples-grey")])
def test_an_untrained_network(prediction, effect, healthy, found):
    faults = {"weights-zero", "network-untrained", "prompt-ignored", effect}
    assert found("new", cascade=untrained(prediction), data=healthy.shards) == faults


def test_the_wrong_prediction_type(healthy, tmp_path, found):
    wrong = changed_cascade(healthy.run, tmp_path / "c", objective=ObjectiveConfig(prediction="eps"))
    assert {"network-untrained"} <= found(wrong, "loss by noise level", data=healthy.shards)


def test_noise_that_remains(healthy, found):
    """A network with errors that only matter at low noise."""

    def noisy(network, x, noise, conditions):
        out = network(x, noise, **conditions)
        shift = 0.3 * torch.randn(out.shape, generator=torch.Generator().manual_seed(0))
        return torch.where((noise < 300)[:, None, None, None], out + shift, out)

    report = found.report("c", "loss by noise level", cascade=wrapped(healthy.cascade(), noisy), data=healthy.shards)
    (finding,) = report.findings
    assert finding.name == "loss-above-trivial" and "keep visible noise" in finding.explanation
    assert "the noised image itself" in finding.explanation


def test_a_network_that_ignores_the_prompt(healthy, found):
    def ignores_text(network, x, noise, conditions):
        text = torch.zeros_like(conditions["text"])
        return network(x, noise, text=text, text_mask=conditions["text_mask"])

    cascade = wrapped(healthy.cascade(), ignores_text)
    assert found("c", "conditional gap", cascade=cascade, data=healthy.shards) == {"prompt-ignored"}
    assert found("c", "prompt", cascade=cascade) == {"prompt-ignored"}  # by samples, without data


def test_samples_all_alike(healthy, found):
    (image, _), *_ = discs(1)
    same = torch.from_numpy(image).permute(2, 0, 1).float() / 127.5 - 1
    cascade = wrapped(healthy.cascade(), lambda network, x, noise, conditions: same.expand_as(x))
    assert found("c", "samples", cascade=cascade, data=healthy.shards) == {"samples-alike"}
    assert found("c", "samples", cascade=cascade) == {"samples-alike"}


def test_oversaturated(healthy, tmp_path, found):
    sampling = dataclasses.replace(patients.experiment(1).stage.sampling, guidance=30.0)
    cascade = changed_cascade(healthy.run, tmp_path / "c", sampling=sampling)
    report = found.report(cascade, "guidance", data=healthy.shards)
    (finding,) = report.findings
    assert finding.name == "oversaturated" and finding.numbers["clipped"] > 0.2
    assert "At guidance scale 30" in finding.explanation and "--guidance 1" in finding.remedy


def test_red_and_blue_exchanged(healthy, tmp_path, found):
    bgr = write_shards(tmp_path / "s", discs(32, seed=2), change=lambda image: image[..., ::-1].copy())
    (finding,) = found.report(healthy.run, "channel order", data=bgr).findings
    assert finding.name == "channels-swapped" and finding.numbers["ratio"] < 0.5


def test_overfitting(healthy, tmp_path, found):
    """Held-out images of another kind, which the network never saw."""
    other = write_shards(
        tmp_path / "s", discs(32), [(image[::-1, :, ::-1] // 2 + 60, text) for image, text in discs(16)]
    )
    assert "overfitted" in found(healthy.run, "overfitting", data=other)


def test_an_ema_that_is_too_slow(healthy, tmp_path, found):
    """The EMA is still that of the first steps."""
    run = copy_run(healthy.run, tmp_path / "run")
    (path,) = checkpoint_paths(run / "checkpoints")
    torch.manual_seed(1)
    new = UNet(patients.UNET).state_dict()
    tensors = {"model": checkpoint.read(path, "model"), "ema": new}
    state = json.loads((path / "state.json").read_text())
    CheckpointFolder(run / "checkpoints", keep=2).save(1000, tensors, state, wait=True)
    assert found(run, "EMA weights", "EMA", data=healthy.shards) == {"ema-far", "ema-behind"}
    assert found(run, "EMA weights") == {"ema-far"}


def test_a_checkpoint_of_adapters(healthy, tmp_path, found):
    """A checkpoint without the frozen weights is no fault; the export, which has all, is examined."""
    run = copy_run(healthy.run, tmp_path / "run")
    (path,) = checkpoint_paths(run / "checkpoints")
    some = {"conv_in.bias": torch.zeros(16)}
    state = json.loads((path / "state.json").read_text())
    CheckpointFolder(run / "checkpoints", keep=1).save(1000, {"model": some, "ema": some}, state, wait=True)
    report = found.report(run, "EMA weights", "EMA", "samples", data=healthy.shards)
    assert report.findings == ()
    skipped = [check.skipped for check in report.checks]
    assert skipped == ["the checkpoint does not hold the whole network"] * 2 + [None]


class Upsampler(nn.Module):
    """Estimates x0 = the low-resolution image; if `fragile`, plus bright spots where that is rough."""

    def __init__(self, fragile: bool, shift: float = 0.0):
        super().__init__()
        self.fragile, self.shift = fragile, shift

    def forward(self, x, noise, *, low_res, low_res_noise):
        rough = low_res.diff(dim=-1).abs().mean((1, 2, 3), keepdim=True) > 0.25
        return (low_res + self.shift + 0.8 * rough * self.fragile).clamp(-1, 1)


def upsampled(healthy, upsampler, base=None):
    """Return the healthy base (or another) with a super-resolution stage from 16 to 32 pixels."""
    config = StageConfig(
        resolution=2 * SIDE,
        low_resolution=SIDE,
        unet=UNetConfig(levels=(Level(channels=8, blocks=1, stride=1),), low_res=True, head_channels=8, norm_groups=4),
        objective=ObjectiveConfig(prediction="x0"),
        sampling=SamplingConfig(steps=3, guidance=1.0, threshold="static", low_res_noise=0.02),
    )
    first = base or healthy.cascade().stages[0]
    return Cascade([first, Stage(config, upsampler)], text=patients.TEXT, unconditional=torch.zeros(1, patients.WIDTH))


def large(tmp_path):
    """Write discs of 32 pixels."""
    return write_shards(tmp_path / "large", discs(16), change=lambda image: image.repeat(2, 0).repeat(2, 1))


def test_super_resolution(healthy, tmp_path, found):
    shards, check = large(tmp_path), "super-resolution"
    assert found("c", check, cascade=upsampled(healthy, Upsampler(fragile=True)), data=shards) == set()
    assert found("c", check, cascade=upsampled(healthy, Upsampler(fragile=False))) == set()
    assert found("c", check, cascade=upsampled(healthy, Upsampler(False, 0.3)), data=shards) == {"upsampling-drifts"}
    rough_base = wrapped(healthy.cascade(), lambda network, x, noise, conditions: torch.randn(x.shape).clamp(-1, 1))
    cascade = upsampled(healthy, Upsampler(fragile=True), rough_base.stages[0])
    (finding,) = found.report("c", check, cascade=cascade, data=shards).findings
    assert finding.name == "upsampling-generated" and "--low-res-noise" in finding.remedy
