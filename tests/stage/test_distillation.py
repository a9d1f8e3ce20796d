"""Distillation targets: the exact solution for analytic teachers, and the teacher's own prediction for equal steps."""

import dataclasses
import math
from types import SimpleNamespace

import pytest
import torch

from imagen.diffusion.objective import ObjectiveConfig
from imagen.diffusion.samplers.base import step_logsnrs
from imagen.diffusion.samplers.ddim import DDIM, implied_x0
from imagen.diffusion.schedule import alpha_sigma, build_schedule, noise_label
from imagen.models.config import Level, UNetConfig
from imagen.stage.config import SamplingConfig, StageConfig
from imagen.stage.distillation import Distillation, divided_steps, least_weight, step_numbers

STUDENT = SamplingConfig(
    sampler="ddim", steps=4, spacing="logsnr", logsnr_range=(-6.0, 3.0), guidance=1.0, threshold="none"
)
TEACHER = dataclasses.replace(STUDENT, sampler="heun", steps=20, logsnr_range=(-6.0, 9.0))
STD = 0.4  # of the data, in the Gaussian case


def stage(prediction="x0", text_width=None, **sampling):
    unet = UNetConfig(levels=(Level(channels=16, blocks=1, stride=1),), text_width=text_width)
    return StageConfig(
        resolution=8,
        unet=unet,
        objective=ObjectiveConfig(prediction=prediction, weighting="velocity"),
        sampling=dataclasses.replace(STUDENT, **sampling),
    )


def logsnr_of(label):
    """The inverse of `noise_label`."""
    return -2 * torch.log(torch.tan(label.double() * math.pi / 2000))


def gaussian(x, label, **conditions):
    """Return E[x0 | x_t] of data N(0, STD^2): a linear function of x_t."""
    alpha, sigma = alpha_sigma(logsnr_of(label), like=x)
    return (alpha * STD**2 / (alpha**2 * STD**2 + sigma**2)).to(x.dtype) * x


def point(x, label, **conditions):
    """Return the posterior mean of data that are one image of constant 0.3."""
    return torch.full_like(x, 0.3)


def guided_points(x, label, *, text, text_mask):
    """A point mass at the text's mean: conditional and unconditional predictions that differ."""
    mean = (text * text_mask[..., None]).sum((1, 2)) / text_mask.sum(1) / text.shape[2]
    return mean[:, None, None, None] + 0.1 * x


def batch(size=8, text=None, image=None):
    if image is None:
        image = torch.randint(0, 256, (size, 3, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    return SimpleNamespace(
        position=2 * size,
        image=image,
        low_res=None,
        text=text,
        text_mask=None if text is None else torch.ones(text.shape[:2], dtype=torch.bool),
    )


def process(predict, what, teacher, teacher_steps, size=8, **options):
    steps = divided_steps(what, teacher, teacher_steps)
    return Distillation(what, predict, teacher, steps, seed=1, batch_size=size, device=torch.device("cpu"), **options)


class TestTargets:
    def test_the_exact_solution_of_the_ode_for_gaussian_data(self):
        """x_s = x_t std_s / std_t with std^2 = alpha^2 STD^2 + sigma^2, for every step of the student."""
        noised = process(gaussian, stage(), TEACHER, 64)(batch())
        levels = [*step_logsnrs(build_schedule(stage().schedule, 8), 4, spacing="logsnr", logsnr_range=(-6, 3))]
        for i, t in enumerate(noised.logsnr_B.double()):
            s = levels[[float(level) for level in levels].index(pytest.approx(float(t))) + 1]
            alphas, sigmas = alpha_sigma(torch.stack([t, s]))
            std = (alphas**2 * STD**2 + sigmas**2).sqrt()
            x_s = noised.x_BCHW[i] * float(std[1] / std[0])
            keep = float(sigmas[1] / sigmas[0])
            expected = (x_s - keep * noised.x_BCHW[i]) / float(alphas[1] - keep * alphas[0])
            torch.testing.assert_close(noised.x0_BCHW[i], expected, rtol=2e-3, atol=2e-3)

    @pytest.mark.parametrize("damping", [0.0, 0.2])
    def test_a_point_mass_for_every_solver(self, damping):
        for sampler in ("ddim", "dpmpp_2m", "heun"):
            teacher = dataclasses.replace(TEACHER, sampler=sampler, damping=damping)
            noised = process(point, stage(damping=damping), teacher, 3)(batch())
            torch.testing.assert_close(noised.x0_BCHW, torch.full_like(noised.x0_BCHW, 0.3), rtol=1e-4, atol=1e-4)

    @pytest.mark.parametrize("damping", [0.0, 0.1])
    def test_equal_steps_give_the_guided_prediction_of_the_teacher(self, damping):
        teacher = dataclasses.replace(
            STUDENT, sampler="dpmpp_2m", guidance=2.0, guidance_interval=(-20.0, 1.0), damping=damping
        )
        text = torch.linspace(-1, 1, 8)[:, None, None].expand(8, 3, 4).contiguous()
        null = torch.full((2, 4), 0.25)
        what = stage(text_width=4, damping=damping)
        noised = process(guided_points, what, teacher, 1, unconditional_LD=null)(batch(text=text))
        weight = torch.where(noised.logsnr_B <= 1, 2.0, 1.0)
        assert weight.tolist().count(2.0) == 6  # of 8 samples in 4 steps; the last step is outside the interval
        mean = 0.25 + weight * (text[:, 0, 0] - 0.25)
        expected = mean[:, None, None, None] + 0.1 * noised.x_BCHW
        torch.testing.assert_close(noised.x0_BCHW, expected, rtol=1e-4, atol=1e-4)

    def test_short_texts_are_padded_to_the_unconditional_embedding(self):
        null = torch.full((5, 4), 0.25)
        teacher = dataclasses.replace(STUDENT, guidance=0.0)  # the unconditional prediction alone
        text = torch.ones(8, 1, 4)
        noised = process(guided_points, stage(text_width=4), teacher, 1, unconditional_LD=null)(batch(text=text))
        torch.testing.assert_close(noised.x0_BCHW, 0.25 + 0.1 * noised.x_BCHW, rtol=1e-4, atol=1e-4)
        assert noised.conditions["text"].shape == (8, 1, 4)  # the student's inputs are as in training

    @pytest.mark.parametrize("prediction", ["x0", "eps", "v"])
    def test_a_network_that_predicts_the_target_has_no_loss(self, prediction):
        def network(x, label, **conditions):
            alpha, sigma = alpha_sigma(logsnr_of(label), like=x)
            eps = (x - alpha * 0.3) / sigma
            return {"x0": torch.full_like(x, 0.3), "eps": eps, "v": alpha * eps - sigma * 0.3}[prediction].float()

        distilling = process(network, stage(prediction), TEACHER, 2)
        noised = distilling(batch())
        loss = distilling.loss(network, noised)
        assert float(loss.total.abs().max()) < 1e-6
        other = distilling.loss(lambda *inputs: network(*inputs) + 0.1, noised)
        assert float(other.total.min()) > 1e-3


class TestWeights:
    @pytest.mark.parametrize(
        "prediction, weighting, expected",
        [
            ("x0", "constant", 1.0),
            ("v", "constant", (1 + math.exp(-6)) / (1 + math.exp(3))),  # SNR + 1
            ("eps", "constant", math.exp(-9)),  # SNR
            ("eps", "velocity", (1 + math.exp(-6)) / (1 + math.exp(3))),
            ("v", "min_snr", math.exp(-6) / 5),
        ],
    )
    def test_the_least_weight_of_a_step_relative_to_the_largest(self, prediction, weighting, expected):
        objective = ObjectiveConfig(prediction=prediction, weighting=weighting)
        assert least_weight([(-6.0, 0.0), (0.0, 3.0), (3.0, math.inf)], objective) == pytest.approx(expected, rel=1e-5)


class TestSteps:
    def test_a_batch_has_equal_shares_of_the_steps_and_exactly_their_noise_levels(self):
        noised = process(point, stage(), TEACHER, 2)(batch())
        assert sorted(noised.logsnr_B.tolist()) == [-6, -6, -3, -3, 0, 0, 3, 3]
        assert step_numbers(torch.tensor([0.0, 0.2, 0.3, 0.99, 1.0]), 4).tolist() == [3, 3, 2, 0, 0]
        assert noised.label_B.tolist() == pytest.approx(noise_label(noised.logsnr_B).tolist())

    def test_a_micro_batch_has_the_targets_of_the_batch(self):
        distilling, whole = process(gaussian, stage(), TEACHER, 2), batch()
        noised = distilling(whole)
        parts = []
        for first in (0, 3):
            part = slice(first, {0: 3, 3: 8}[first])
            some = batch(image=whole.image[part])
            some.position = whole.position + first
            parts.append(distilling(some).x0_BCHW)
        torch.testing.assert_close(torch.cat(parts), noised.x0_BCHW)

    def test_steps_of_the_teacher(self):
        inf = math.inf
        assert divided_steps(stage(), TEACHER, 3) == [
            pytest.approx(each) for each in [(-6, -5, -4, -3), (-3, -2, -1, 0), (0, 1, 2, 3), (3, 6, 9, inf)]
        ]
        assert divided_steps(stage(), TEACHER, 1) == [(-6, -3), (-3, 0), (0, 3), (3, inf)]
        # A student's student: the same levels in half as many steps.
        halved = stage(steps=2, logsnr_range=(-6.0, 0.0))
        assert divided_steps(halved, STUDENT, 2) == [pytest.approx(each) for each in [(-6, -3, 0), (0, 3, inf)]]

    def test_implied_x0_inverts_a_step(self):
        x, x0 = torch.randn(2, 3, 4, 4, dtype=torch.float64), torch.rand(2, 3, 4, 4, dtype=torch.float64)
        for end, damping in ((1.0, 0.0), (1.0, 0.3), (math.inf, 0.3)):
            sampler = DDIM(damping=damping)
            x_s = sampler.sample(lambda x, logsnr: SimpleNamespace(x0=x0), x, [-4.0, end])
            torch.testing.assert_close(implied_x0(x, x_s, -4.0, end, damping), x0)
