"""Distillation in training: its fields, the student's sampling settings, and the teacher's weights."""

from dataclasses import dataclass, replace
from pathlib import Path

import torch

from imagen import limits
from imagen.errors import UserError
from imagen.stage.config import SamplingConfig, StageConfig
from imagen.stage.denoiser import Predict, build_predict
from imagen.stage.network import Network
from imagen.stage.weights import build_unet
from imagen.train.initial import InitConfig, base_path, read_initial


@dataclass(frozen=True, kw_only=True)
class DistillConfig:
    """Configure distillation, which trains a stage for the few steps of `stage.sampling`.

    Its teacher is the initial stage (`init`).
    """

    teacher_steps: int = 0  # of the teacher in each step of the student; 0: no distillation
    # How the teacher samples: its solver and guidance. With --init, the initial stage's own defaults.
    teacher: SamplingConfig | None = None

    def check(self, stage: StageConfig, init: InitConfig | None) -> None:
        """Raise UserError, naming the field, if the stage cannot be distilled."""
        limits.check(self, limits.DISTILL, "distill.")
        if not self.teacher_steps:
            return
        if init is None or self.teacher is None:
            raise UserError(
                f"distill.teacher_steps is {self.teacher_steps}, but there is no teacher: set --init CASCADE#STAGE"
            )
        if init.partial:
            raise UserError("distillation needs all of the teacher's weights: leave --init-partial out")
        if stage.low_resolution is not None:
            raise UserError(
                f"stage {stage.resolution} is a super-resolution stage, which distillation does not train: "
                "fewer sampler steps (--steps) need no training there"
            )
        if stage.unet.learned_variance:
            raise UserError("stage.unet.learned_variance is true, but distillation does not train a variance")
        if stage.schedule.kind == "discrete_cosine":
            raise UserError("stage.schedule.kind is discrete_cosine; distillation needs a continuous noise schedule")
        if stage.sampling.sampler != "ddim" or stage.sampling.eta:
            raise UserError(
                f"stage.sampling.sampler is {stage.sampling.sampler}, eta {stage.sampling.eta:g}: distillation is for "
                "ddim without noise (eta 0)"
            )
        self.teacher.check("distill.teacher")
        if self.teacher.build_sampler().stochastic:
            raise UserError(
                f"distill.teacher.sampler is {self.teacher.sampler}, which draws noise: choose a deterministic one, "
                "such as dpmpp_2m"
            )


def student_sampling(teacher: SamplingConfig, preset: SamplingConfig) -> SamplingConfig:
    """Return the student's settings: the preset's steps, no guidance, and the teacher's threshold and damping."""
    return replace(
        teacher,
        sampler="ddim",
        sampler_options={},
        eta=0.0,
        steps=preset.steps,
        spacing=preset.spacing,
        logsnr_range=preset.logsnr_range,
        guidance=1.0,
        guidance_interval=None,
        guidance_rescale=0.0,
    )


def load_teacher(
    stage: StageConfig, init: InitConfig, run: Path, device: torch.device, dtype: torch.dtype | None
) -> Predict:
    """Load the initial weights, from the run's copy of them, as a frozen network that computes in `dtype`."""
    path = base_path(run, init)
    unet = build_unet(stage.unet, read_initial(init, path), path, dtype)
    return build_predict(*Network(unet).to_device(device, dtype))
