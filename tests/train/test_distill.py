"""Distillation in training: fields, a run that learns, resumes exactly and exports its settings."""

import dataclasses
import shutil

import pytest
import torch
from finetuning import cascade_of, started, without_config_of
from ranks import run_on_ranks
from run_state import assert_same, metrics
from toy import experiment, train_on_rank, train_quietly

from imagen.cascade import Cascade
from imagen.cascade.storage import read_manifest
from imagen.errors import UserError
from imagen.lora import LoraConfig
from imagen.presets import preset
from imagen.stage.config import SamplingConfig
from imagen.train.config import OptimConfig
from imagen.train.distill import DistillConfig
from imagen.train.experiment import check, override
from imagen.train.finetune import check_changes, start_from
from imagen.train.run import train_run

TEACHER = SamplingConfig(sampler="dpmpp_2m", steps=8, guidance=2.0, guidance_interval=(-20.0, 3.0), damping=0.1)
OPTIM = OptimConfig(lr=1e-2, warmup_steps=1, eps=1e-4, schedule="constant")


@pytest.fixture(scope="module")
def cascade(tmp_path_factory):
    what = experiment()
    what = dataclasses.replace(what, stage=dataclasses.replace(what.stage, sampling=TEACHER))
    return cascade_of(tmp_path_factory.mktemp("distill") / "cascade", what)


def distilled(cascade, *fields, run=None, lora=None, **train):
    """The toy experiment, distilling the stage of `cascade` to 2 steps."""
    what = experiment(**{"steps": 4, "checkpoint_every": 2, "log_every": 1, "gap_every": 2, **train})
    student = SamplingConfig(steps=2, spacing="logsnr", logsnr_range=(-6.0, 0.0))
    what = dataclasses.replace(
        what,
        stage=dataclasses.replace(what.stage, sampling=student),
        distill=DistillConfig(teacher_steps=2),
        optim=OPTIM,
        lora=lora or LoraConfig(),
    )
    begun = start_from(what, str(cascade), run=run)
    found = override(begun, fields)
    check_changes(begun, found)
    check(found)
    return found


@pytest.fixture(scope="module")
def alone(shards, cascade, tmp_path_factory):
    run = tmp_path_factory.mktemp("alone") / "run"
    train_run(distilled(cascade), shards, run, report=lambda line: None)
    return run


class TestFields:
    def test_the_initial_stage_samples_as_teacher_and_the_preset_gives_the_steps(self, cascade):
        found = distilled(cascade, "--distill.teacher.guidance", "3", "--stage.sampling.steps", "3")
        assert found.distill.teacher == dataclasses.replace(TEACHER, guidance=3.0)
        student = found.stage.sampling
        assert (student.sampler, student.steps, student.guidance, student.damping) == ("ddim", 3, 1.0, 0.1)
        assert (student.spacing, student.logsnr_range, student.guidance_interval) == ("logsnr", (-6.0, 0.0), None)

    @pytest.mark.parametrize(
        "fields, message",
        [
            (("--distill.teacher", "null"), "there is no teacher: set --init"),
            (("--distill.teacher.sampler", "ddpm"), r"distill\.teacher\.sampler is ddpm, which draws noise"),
            (("--stage.sampling.sampler", "dpmpp_2m"), r"stage\.sampling\.sampler is dpmpp_2m"),
            (("--stage.sampling.eta", "0.5"), r"eta 0\.5"),
            (("--distill.teacher_steps", "-1"), r"distill\.teacher_steps"),
        ],
    )
    def test_mistakes_are_named(self, cascade, fields, message):
        with pytest.raises(UserError, match=message):
            distilled(cascade, *fields)

    def test_stages_that_cannot_be_distilled(self, tmp_path):
        what = experiment()
        unet = dataclasses.replace(what.stage.unet, low_res=True)
        upsampling = dataclasses.replace(what.stage, unet=unet, low_resolution=8)
        variance = dataclasses.replace(what.stage, unet=dataclasses.replace(what.stage.unet, learned_variance=True))
        for stage, message in ((upsampling, "is a super-resolution stage"), (variance, "does not train a variance")):
            folder = cascade_of(tmp_path / str(stage.low_resolution), dataclasses.replace(what, stage=stage))
            with pytest.raises(UserError, match=message):
                distilled(folder)

    def test_without_init_there_is_no_teacher(self):
        what = dataclasses.replace(experiment(), distill=DistillConfig(teacher_steps=2))
        with pytest.raises(UserError, match="there is no teacher"):
            check(what)

    def test_the_preset_takes_four_steps(self):
        sampling = preset("distill").stage.sampling
        assert (sampling.steps, sampling.spacing) == (4, "logsnr") and preset("distill").distill.teacher_steps > 1


class TestTraining:
    def test_the_loss_decreases(self, shards, cascade, tmp_path):
        train_quietly(distilled(cascade, steps=60, log_every=20, checkpoint_every=60), shards, tmp_path)
        losses = [row["loss"] for row in metrics(tmp_path)]
        assert losses[-1] < 0.5 * losses[0]
        assert all("conditional_gap" not in row for row in metrics(tmp_path))

    @pytest.mark.parametrize("lora", [None, LoraConfig(rank=2)], ids=["weights", "lora"])
    def test_a_resumed_run_equals_an_uninterrupted_one(self, shards, cascade, tmp_path, alone, lora):
        """And needs nothing but its own folder: it keeps the teacher's weights and settings."""
        if lora is not None:
            train_quietly(distilled(cascade, lora=lora), shards, tmp_path / "whole")
        source = tmp_path / "c"
        shutil.copytree(cascade, source)
        for steps in (1, 3):
            train_quietly(distilled(source, lora=lora, steps=steps), shards, tmp_path / "run")
        shutil.rmtree(source)
        train_quietly(distilled(source, lora=lora, run=tmp_path / "run"), shards, tmp_path / "run")
        assert_same(
            without_config_of(tmp_path / "run"), without_config_of(alone if lora is None else tmp_path / "whole")
        )

    def test_the_steps_of_a_run_stay(self, shards, cascade, tmp_path):
        train_quietly(distilled(cascade, steps=1), shards, tmp_path)
        with pytest.raises(UserError, match=r"started with stage\.sampling\.steps = 2, not 3"):
            train_quietly(distilled(cascade, "--stage.sampling.steps", "3", steps=2), shards, tmp_path)

    def test_on_two_ranks(self, shards, cascade, tmp_path, alone):
        run_on_ranks(2, train_on_rank, distilled(cascade), shards, tmp_path)
        for row, wanted in zip(metrics(tmp_path), metrics(alone), strict=True):
            assert row["loss"] == pytest.approx(wanted["loss"], rel=1e-4)

    def test_the_export_samples_in_few_steps(self, alone):
        (record,) = read_manifest(alone / "export").stages
        assert (record.config.sampling.sampler, record.config.sampling.steps) == ("ddim", 2)
        request = Cascade.load(alone).request(torch.zeros(1, 8))
        assert request.settings[0].guidance == 1.0

    def test_a_weighting_that_neglects_a_step_is_reported(self, shards, cascade, tmp_path):
        lines = []
        fields = ("--stage.sampling.logsnr_range", "[-9, 0]")  # the toy predicts eps with a constant weight
        train_quietly(distilled(cascade, *fields, steps=1), shards, tmp_path / "run", report=lines.append)
        (line,) = [line for line in lines if "hardly be trained" in line]
        assert line.startswith("stage.objective.weighting is constant: one of the student's steps has 1e-04 of")

    def test_a_plain_run_has_no_teacher(self, cascade):
        assert started(cascade).distill == DistillConfig()
