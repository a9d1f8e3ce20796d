"""Distill a sampler of many steps into few: train a student to do in one step what its teacher does in several.

Progressive distillation (2202.00512) with guidance folded in (2210.03142), of all steps of the student at once, from
noised training images (TRACT, 2303.04248). One deterministic step is affine in the x0 estimate, so there is one x0 with
which it ends where the teacher's steps end. It replaces the clean image in the loss; all else is as in training.

Shapes: see `imagen.stage.inputs`.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import groupby, pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from imagen.diffusion.objective import ObjectiveConfig, eps_mse_factor, weight
from imagen.diffusion.samplers.base import step_logsnrs
from imagen.diffusion.samplers.ddim import implied_x0
from imagen.diffusion.schedule import alpha_sigma, build_schedule
from imagen.stage.config import SamplingConfig, StageConfig
from imagen.stage.denoiser import Conditioning, Predict, build_denoiser
from imagen.stage.inputs import drop_text, text_inputs
from imagen.stage.loss import CleanBatch, ForwardProcess, NoisedBatch
from imagen.text.embeddings import pad_to_length

Levels = tuple[float, ...]  # increasing log-SNRs


class Distillation(ForwardProcess):
    """Noise a batch to the starts of the student's steps, with the teacher's result as its clean images.

    stage: of the student.
    predict: the teacher's U-Net, see `build_predict`. teacher: how it samples: its solver and guidance.
    steps: the log-SNRs of the teacher's steps in each step of the student, see `divided_steps`.
    options: as for `ForwardProcess`. `schedule` has no effect, because only the starts of steps are needed.
    """

    def __init__(
        self, stage: StageConfig, predict: Predict, teacher: SamplingConfig, steps: Sequence[Levels], **options: Any
    ):
        super().__init__(stage, **options)
        self.predict, self.teacher, self.solver = predict, teacher, teacher.build_sampler()
        self.steps = steps
        self.schedule = StepStarts([levels[0] for levels in self.steps])

    @torch.no_grad()
    def __call__(self, batch: CleanBatch) -> NoisedBatch:
        """Draw a step of the student and noise for each sample, and let the teacher take that step."""
        noised = super().__call__(batch)
        cond, uncond = self._guidance_text(noised.conditions)
        targets = []
        for levels, part in self.groups(noised.t_B):
            conditioning = Conditioning(_part(cond, part), _part(uncond, part))
            targets.append(self._target(noised.x_BCHW[part], levels, conditioning))
        x0_BCHW = torch.cat(targets)
        alpha, sigma = alpha_sigma(noised.logsnr_B, like=x0_BCHW)
        return replace(noised, x0_BCHW=x0_BCHW, eps_BCHW=(noised.x_BCHW - alpha * x0_BCHW) / sigma)

    def groups(self, t_B: Tensor) -> Iterator[tuple[Levels, slice]]:
        """Yield the teacher's log-SNRs and the samples of each step of the student in a batch."""
        first = 0
        # Times increase along a batch, so the samples of one step are adjacent.
        for number, run in groupby(step_numbers(t_B, len(self.steps)).tolist()):
            yield self.steps[number], slice(first, first := first + len(list(run)))

    def evaluations(self, levels: Levels) -> int:
        """Count the teacher's network evaluations per image in a step, with both halves of guided ones."""
        count = 0

        def predict(x_BCHW: Tensor, noise_B: Tensor, **conditions: Tensor) -> Tensor:
            nonlocal count
            count += len(x_BCHW)
            return x_BCHW

        text: dict[str, Tensor] = {} if self.stage.unet.text_width is None else {"text": torch.zeros(1)}
        denoise = build_denoiser(predict, self.stage, self.teacher, Conditioning(text, text))
        self.solver.sample(denoise, torch.zeros(1, self.stage.unet.image_channels, 1, 1), levels)
        return count

    def _target(self, x_BCHW: Tensor, levels: Levels, conditioning: Conditioning) -> Tensor:
        """Return the x0 with which the student's step ends where the teacher's steps end."""
        denoise = build_denoiser(self.predict, self.stage, self.teacher, conditioning)
        end_BCHW = self.solver.sample(denoise, x_BCHW, levels)
        return implied_x0(x_BCHW, end_BCHW, levels[0], levels[-1], self.stage.sampling.damping)

    def _guidance_text(self, conditions: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return the text inputs with and without the prompts, in the same shapes."""
        if self.unconditional_LD is None or "text" not in conditions:
            return dict(conditions), {}
        text_BLD, mask_BL = conditions["text"], conditions["text_mask"]
        text_BLD, mask_BL = pad_to_length(text_BLD, mask_BL, len(self.unconditional_LD))
        dropped_B = torch.ones(len(text_BLD), dtype=torch.bool, device=text_BLD.device)
        unconditional = text_inputs(*drop_text(text_BLD, mask_BL, dropped_B, self.unconditional_LD))
        return conditions | text_inputs(text_BLD, mask_BL), unconditional


def _part(tensors: dict[str, Tensor], part: slice) -> dict[str, Tensor]:
    return {name: value[part] for name, value in tensors.items()}


class StepStarts:
    """A schedule that maps t in [0, 1] to the log-SNR at the start of one of K steps, each for 1 / K of the times."""

    def __init__(self, starts: Sequence[float]):
        self.starts = torch.tensor(starts, dtype=torch.float64)

    def __call__(self, t: Tensor, /) -> Tensor:
        return self.starts[step_numbers(t.cpu(), len(self.starts))].to(t)


def step_numbers(t: Tensor, steps: int) -> Tensor:
    """Return the step of each time in [0, 1]: the first, noisiest, has the times from 1 - 1 / steps to 1."""
    return steps - 1 - (t.double() * steps).floor().clamp(0, steps - 1).long()


def divided_steps(stage: StageConfig, teacher: SamplingConfig, teacher_steps: int) -> list[Levels]:
    """Return the log-SNRs of the teacher's steps in each step of the student.

    They are uniform in log-SNR. The last step of the student ends at clean images: there the teacher's steps are
    uniform up to the last log-SNR at which it is evaluated in sampling, then one goes to clean images.
    """
    schedule, student = build_schedule(stage.schedule, stage.resolution), stage.sampling
    options = {"spacing": student.spacing, "logsnr_range": student.logsnr_range}
    levels = step_logsnrs(schedule, student.steps, **options).tolist()  # type: ignore[arg-type]
    own = step_logsnrs(schedule, teacher.steps, spacing=teacher.spacing, logsnr_range=teacher.logsnr_range)
    last = max(levels[-2], float(own[-2]))
    result = []
    for start, end in pairwise(levels):
        if end < math.inf:
            inner = np.linspace(start, end, teacher_steps + 1)[1:-1]
        else:
            inner = np.unique(np.linspace(start, last, teacher_steps))[1:]
        result.append((start, *inner.tolist(), end))
    return result


def least_weight(steps: Sequence[Levels], objective: ObjectiveConfig) -> float:
    """Return the least weight of a step's x0 error in the loss, relative to the largest, in (0, 1].

    Weights that vanish with the SNR, such as that of the eps error, hardly train the first step of a student
    (2202.00512, section 4).
    """
    starts = torch.tensor([levels[0] for levels in steps], dtype=torch.float64)
    weights = weight(starts, objective) * starts.exp() / eps_mse_factor(objective.prediction, starts)
    return float(weights.min() / weights.max())
