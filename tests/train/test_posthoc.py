"""Test EMAs reconstructed from snapshots against EMAs tracked directly, and against integrals."""

import math

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from toy import UNET

from imagen.cascade import StageConfig, export_stage
from imagen.cascade.storage import read_manifest
from imagen.errors import UserError
from imagen.models.unet import UNet
from imagen.text.config import TextConfig
from imagen.train.ema import PowerEma
from imagen.train.export import export_run
from imagen.train.posthoc import coefficients, exponent, reconstruct, save_snapshot, snapshots, tracked

STEPS, EVERY = 3000, 100
TRACKED = (0.05, 0.1)


@pytest.mark.parametrize("sigma_rel", [0.01, 0.05, 0.1, 0.2, 0.28])
def test_sigma_rel_is_a_standard_deviation(sigma_rel):
    gamma, t = exponent(sigma_rel), (np.arange(1_000_000) + 0.5) / 1_000_000
    p = (gamma + 1) * t**gamma
    mean = (p * t).mean()
    assert math.sqrt((p * (t - mean) ** 2).mean()) == pytest.approx(sigma_rel, rel=1e-4)


@pytest.mark.parametrize("sigma_rel", [0.0, -0.1, 0.2887, 1.0, math.nan])
def test_sigma_rel_out_of_range(sigma_rel):
    with pytest.raises(UserError, match="sigma_rel is"):
        exponent(sigma_rel)


class KnownWeights(nn.Module):
    """A module with known weights at every step: a power, a wave, and a random walk of 50 elements."""

    def __init__(self):
        super().__init__()
        self.power = nn.Parameter(torch.zeros(1, dtype=torch.float64))
        self.wave = nn.Parameter(torch.zeros(1, dtype=torch.float64))
        self.walk = nn.Parameter(torch.zeros(50, dtype=torch.float64))
        self.register_buffer("count", torch.tensor(7))
        self.generator = torch.Generator().manual_seed(0)

    @torch.no_grad()
    def go(self, step):
        self.power.fill_((step / STEPS) ** 1.5)
        self.wave.fill_(math.sin(step / 150))
        self.walk.add_(torch.randn(50, generator=self.generator, dtype=torch.float64), alpha=STEPS**-0.5)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Return snapshots of two EMAs, and the weights of others tracked directly, by (sigma_rel, step)."""
    folder, model = tmp_path_factory.mktemp("averages"), KnownWeights()
    averages = {sigma: PowerEma(model, sigma) for sigma in (*TRACKED, 0.04, 0.07, 0.15, 0.2)}
    direct = {}
    for step in range(1, STEPS + 1):
        model.go(step)
        for average in averages.values():
            average.update(model, step)
        if step % EVERY == 0:
            for sigma in TRACKED:
                save_snapshot(folder, f"sigma_rel-{sigma}", step, averages[sigma].export(model))
        if step in (2000, STEPS):
            direct |= {(sigma, step): average.export(model) for sigma, average in averages.items()}
    return folder, direct


@pytest.mark.parametrize("step", [STEPS, 2000, None])
@pytest.mark.parametrize("sigma_rel, tolerance", [(0.04, 0.01), (0.07, 0.003), (0.15, 0.01), (0.2, 0.02)])
def test_reconstruction_equals_direct_tracking(saved, sigma_rel, step, tolerance):
    folder, direct = saved
    weights, at, distance = reconstruct(folder, sigma_rel, step)
    assert at == (step or STEPS) and distance < tolerance
    for name, value in direct[sigma_rel, at].items():
        torch.testing.assert_close(weights[name], value, rtol=0, atol=tolerance)
    gamma = exponent(sigma_rel)  # the integral of (g + 1) t^g t^1.5, up to the length of a step
    assert float(weights["power"]) == pytest.approx((at / STEPS) ** 1.5 * (gamma + 1) / (gamma + 2.5), abs=tolerance)
    assert weights["count"] == 7


@pytest.mark.parametrize("sigma_rel", TRACKED)
@pytest.mark.parametrize("step", [STEPS, 2000])
def test_tracked_emas_are_reconstructed_exactly(saved, sigma_rel, step):
    folder, direct = saved
    weights, _, distance = reconstruct(folder, sigma_rel, step)
    assert distance < 1e-6
    for name, value in direct[sigma_rel, step].items():
        torch.testing.assert_close(weights[name], value, rtol=1e-6, atol=1e-6)


def test_float16_snapshots_are_exact_up_to_rounding(saved, tmp_path):
    folder, _ = saved
    for snapshot in snapshots(folder, "sigma_rel"):
        weights = {name: w.half() if w.is_floating_point() else w for name, w in load_file(snapshot.path).items()}
        save_snapshot(tmp_path, snapshot.name, snapshot.step, weights)
    exact, half = reconstruct(folder, 0.15)[0], reconstruct(tmp_path, 0.15)[0]
    torch.testing.assert_close(half["walk"], exact["walk"], rtol=2**-10, atol=2**-10)


def test_coefficients_are_optimal():
    """Compares with least squares over profiles sampled at 200,000 points in time."""
    steps, sigma_rels = [500, 500, 800, 1000, 1000], [0.05, 0.1, 0.1, 0.05, 0.1]
    c, distance = coefficients(steps, sigma_rels, 1000, 0.15)
    t = (np.arange(200_000) + 0.5) / 200_000

    def profile(step, sigma_rel):
        gamma, end = exponent(sigma_rel), step / 1000
        return np.where(t <= end, (gamma + 1) * np.minimum(t / end, 1) ** gamma / end, 0)

    columns = np.stack([profile(*which) for which in zip(steps, sigma_rels, strict=True)], axis=1)
    wanted = profile(1000, 0.15)
    best = np.linalg.lstsq(columns, wanted, rcond=None)[0]
    np.testing.assert_allclose(c, best / best.sum(), rtol=1e-3)
    found = np.sqrt(((columns @ c - wanted) ** 2).mean() / (wanted**2).mean())
    assert distance == pytest.approx(found, rel=1e-3)


def test_ema_of_a_decay_is_exported_unchanged(tmp_path):
    for step in (5, 10):
        for decay in (0.9, 0.99):
            save_snapshot(tmp_path, f"decay-{decay}", step, {"w": torch.tensor([decay * step]).half()})
    assert tracked(tmp_path, 0.99, 5)[0]["w"] == torch.tensor([0.99 * 5]).half().float()
    weights, step = tracked(tmp_path, 0.9)
    assert step == 10 and weights["w"].dtype == torch.float32 and float(weights["w"]) == 9.0


def test_mistakes(saved, tmp_path):
    folder, _ = saved
    with pytest.raises(UserError, match="contains no EMA snapshots"):
        reconstruct(tmp_path, 0.1)
    with pytest.raises(UserError, match=r"no EMA snapshots by decay 0.9: see train.ema_snapshot_every"):
        tracked(folder, 0.9)
    with pytest.raises(UserError, match="no snapshots of step 2960; the nearest are of step 3000"):
        reconstruct(folder, 0.1, 2960)
    broken = tmp_path / "sigma_rel-0.1" / "step-00000010.safetensors"
    broken.parent.mkdir()
    broken.write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"step-00000010.safetensors cannot be read"):
        reconstruct(tmp_path, 0.1)


def test_the_command(imagen, error_of, tmp_path):
    """Exports cascades with other EMAs from a run's export and its snapshots."""
    stage, text, run = StageConfig(resolution=16, unet=UNET), TextConfig(encoder="toy", width=8), tmp_path / "run"
    state = {name: torch.zeros_like(value) for name, value in UNet(UNET).state_dict().items()}
    parts = {"stage": stage, "text": text, "unconditional": torch.ones(2, 8)}
    export_stage(run / "export", weights=state, info={"preset": "toy", "step": 9, "images": 72}, **parts)
    with pytest.raises(UserError, match="no EMA snapshots"):
        export_run(run, tmp_path / "out", sigma_rel=0.1)
    for name, step, value in (("sigma_rel-0.1", 4, 1.0), ("sigma_rel-0.1", 8, 2.0), ("decay-0.5", 8, 3.0)):
        weights = {key: torch.full_like(w, value, dtype=torch.float16) for key, w in state.items()}
        save_snapshot(run / "averages", name, step, weights)

    for options, value, expected in (
        (["--sigma-rel", 0.1], 2.0, {"step": 8, "ema_sigma_rel": 0.1, "ema_distance": 0.0}),
        (["--sigma-rel", 0.1, "--step", 4], 1.0, {"step": 4, "ema_sigma_rel": 0.1, "ema_distance": 0.0}),
        (["--decay", 0.5], 3.0, {"step": 8, "ema_decay": 0.5}),
    ):
        reported = imagen("export", run, *options, "--out", tmp_path / "out")
        assert f"at step {expected['step']}" in reported
        (record,) = read_manifest(tmp_path / "out").stages
        assert record.info == {"preset": "toy", **expected} and record.config == stage
        for tensor in load_file(tmp_path / "out" / record.weights).values():
            torch.testing.assert_close(tensor, torch.full_like(tensor, value))

    assert "sigma_rel is 0.5" in error_of("export", run, "--sigma-rel", 0.5, "--out", tmp_path / "out")
    assert "contains no checkpoints" in error_of("export", run, "--out", tmp_path / "out")
    both = ["--sigma-rel", 0.1, "--decay", 0.5]
    assert "not allowed with" in error_of("export", run, *both, "--out", tmp_path / "out")
    (run / "config.json").write_text("{}")
    assert "is a training run" in error_of("export", run, "--decay", 0.5, "--out", run)
