"""CIFAR-10 at 32x32, a common small benchmark: captions name the class, FID is measured without guidance.

Published FID of 50,000 images against the training images: DDPM 3.17 (35.7M parameters, 102M training images), EDM 1.79
with classes and 1.97 without (55.7M parameters, 200M training images, 35 network evaluations).
"""

from dataclasses import replace

from imagen.cascade import SamplingConfig, StageConfig
from imagen.data.loading.config import DataConfig
from imagen.diffusion.objective import ObjectiveConfig
from imagen.diffusion.schedule import ScheduleConfig
from imagen.models.config import Level, UNetConfig
from imagen.text.config import TextConfig
from imagen.train.config import OptimConfig, TrainConfig
from imagen.train.experiment import Experiment

TEXT = TextConfig()  # the embedded encoder


def cifar10() -> Experiment:
    """CIFAR-10 from class names, 39.4M parameters: EDM's budget of 200M training images, a GPU-day or two."""
    unet = UNetConfig(
        levels=(
            Level(channels=128, blocks=2, stride=1),
            Level(channels=256, blocks=2, attention="fused"),
            Level(channels=256, blocks=2),
            Level(channels=256, blocks=2),
        ),
        text_width=TEXT.width,
        context_width=256,
        dropout=0.13,  # EDM's
    )
    return Experiment(
        name="cifar10",
        stage=StageConfig(
            resolution=32,
            unet=unet,
            schedule=ScheduleConfig(),
            objective=ObjectiveConfig(prediction="v", weighting="velocity"),
            sampling=SamplingConfig(sampler="dpmpp_2m", steps=35, spacing="logsnr", guidance=1.0, threshold="static"),
        ),
        text=TEXT,
        data=DataConfig(flip=True),
        optim=OptimConfig(algorithm="adam", lr=1e-3, warmup_steps=20_000),  # of 10M images, EDM's
        train=TrainConfig(
            steps=390_000,
            batch_size=512,
            ema_decay=0.9993,  # half of the weight in the last 0.5M images
            sample_every=5_000,
            checkpoint_every=5_000,
        ),
    )


def cifar10_small() -> Experiment:
    """CIFAR-10 from class names for two CPU cores: 5M training images, about 31 hours of one core."""
    full = cifar10()
    unet = replace(
        full.stage.unet,
        levels=(
            Level(channels=48, blocks=1, stride=1),
            Level(channels=96, blocks=2),
            Level(channels=192, blocks=2, attention="fused", attend="last"),
        ),
        resample="plain",
        context_width=192,
        time_width=192,
        norm_groups=8,
        dropout=0.0,  # the network is small, and is trained on each image about 100 times
    )
    return replace(
        full,
        name="cifar10_small",
        stage=replace(full.stage, unet=unet),
        optim=OptimConfig(
            algorithm="muon", lr=1e-3, muon_lr=4e-3, betas=(0.9, 0.99), warmup_steps=100, schedule="constant"
        ),
        train=replace(
            full.train, steps=40_000, batch_size=128, ema_decay=0.9995, sample_every=1000, checkpoint_every=250
        ),
    )
