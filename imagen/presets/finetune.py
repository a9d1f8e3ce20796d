"""Settings for fine-tuning: the stage is that of `--init CASCADE#STAGE`, by default the packaged emoji base."""

from dataclasses import replace

from imagen.emoji.presets import emoji_64
from imagen.lora.config import ATTENTION, LoraConfig
from imagen.train.config import OptimConfig, TrainConfig
from imagen.train.distill import DistillConfig, student_sampling
from imagen.train.experiment import Experiment
from imagen.train.initial import InitConfig


def finetune() -> Experiment:
    """Train all weights of a stage of a cascade further, at a low constant learning rate."""
    return Experiment(
        name="finetune",
        stage=emoji_64().stage,
        text=emoji_64().text,
        init=InitConfig(source="emoji#64"),
        optim=OptimConfig(lr=1e-5, betas=(0.9, 0.99), weight_decay=0.01, warmup_steps=100, schedule="constant"),
        train=TrainConfig(
            steps=2000,
            batch_size=16,
            ema_decay=0.99,
            log_every=20,
            sample_every=500,
            checkpoint_every=500,
            gap_every=0,
        ),
    )


def finetune_lora() -> Experiment:
    """Train low-rank adapters of a stage of a cascade: small files, little memory for the optimizer."""
    base = finetune()
    return replace(
        base,
        name="finetune_lora",
        optim=replace(base.optim, lr=1e-3, weight_decay=0.0),
        lora=LoraConfig(rank=16),
    )


def distill() -> Experiment:
    """Train adapters for 4 sampler steps without guidance, in place of the many guided steps of a base stage."""
    base = finetune_lora()
    teacher = base.stage.sampling  # that of the initial stage, with --init
    steps = replace(teacher, steps=4, spacing="logsnr", logsnr_range=(-9.0, 3.0))
    return replace(
        base,
        name="distill",
        stage=replace(base.stage, sampling=student_sampling(teacher, steps)),
        distill=DistillConfig(teacher_steps=3, teacher=teacher),
        lora=LoraConfig(rank=32, convolutions=True, targets=(*ATTENTION, "*.modulation")),
        train=replace(base.train, text_dropout=0.05),
    )


def subject() -> Experiment:
    """Teach a stage a subject from few images, for `imagen subject`: adapters of attention and convolutions."""
    base = finetune_lora()
    return replace(
        base,
        name="subject",
        optim=replace(base.optim, lr=5e-4, warmup_steps=50),
        lora=LoraConfig(rank=16, convolutions=True),
        train=replace(base.train, steps=800, batch_size=8, sample_every=200, checkpoint_every=200, ema_decay=0.98),
    )
