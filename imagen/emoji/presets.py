"""Presets of small models for the embedded emoji data, which train on two CPU cores."""

from dataclasses import replace

from imagen.cascade import SamplingConfig, StageConfig
from imagen.data.loading.config import DataConfig
from imagen.diffusion.objective import ObjectiveConfig
from imagen.diffusion.schedule import ScheduleConfig
from imagen.models.config import Level, UNetConfig
from imagen.text.config import TextConfig
from imagen.train.config import OptimConfig, TrainConfig
from imagen.train.experiment import Experiment

MINILM = TextConfig()  # the embedded encoder
OPTIM = OptimConfig(algorithm="muon", lr=1e-3, muon_lr=4e-3, betas=(0.9, 0.99), warmup_steps=100, schedule="constant")


def emoji_64() -> Experiment:
    """Return the text -> 64 preset for the emoji data, which trains in an hour on two CPU cores.

    Most parameters are in the levels at 8x8 and 4x4.
    """
    unet = UNetConfig(
        levels=(
            Level(channels=64, blocks=1, stride=1),
            Level(channels=128, blocks=1),
            Level(channels=256, blocks=1, attention="fused", attend="last"),
            Level(channels=256, blocks=1, attention="fused", attend="last"),
        ),
        patch=2,
        resample="plain",
        coordinates=True,
        text_width=MINILM.width,
        context_width=256,
        time_width=256,
        norm_groups=4,
    )
    return Experiment(
        name="emoji_64",
        stage=StageConfig(
            resolution=64,
            unet=unet,
            schedule=ScheduleConfig(shift_reference=32),
            objective=ObjectiveConfig(prediction="x0", weighting="velocity"),
            sampling=SamplingConfig(
                sampler="dpmpp_2m",
                steps=20,
                spacing="auto",
                guidance=2.0,
                guidance_interval=(-20.0, 3.0),  # at low noise, guidance would exaggerate existing features
                damping=0.1,
                threshold="static",
            ),
        ),
        text=MINILM,
        optim=OPTIM,
        train=TrainConfig(
            steps=20_000,
            batch_size=48,
            # The content of an image is decided at high noise. Flat drawings remain visible at higher noise than
            # photographs do, so train mostly there.
            schedule=ScheduleConfig(shift_reference=8),
            ema_decay=0.998,
            log_every=50,
            sample_every=1000,
            checkpoint_every=500,
        ),
    )


def emoji_mini_64() -> Experiment:
    """Return the text -> 64 preset for the demo, which learns a dozen centred objects in minutes on two CPU cores."""
    full = emoji_64()
    unet = replace(
        full.stage.unet,
        levels=(
            Level(channels=32, blocks=1, stride=1),
            Level(channels=64, blocks=1),
            Level(channels=128, blocks=1, attention="fused", attend="last"),
            Level(channels=192, blocks=1, attention="fused", attend="last"),
        ),
        context_width=192,
        time_width=192,
    )
    return replace(
        full,
        name="emoji_mini_64",
        stage=replace(full.stage, unet=unet),
        optim=replace(full.optim, warmup_steps=50),
        train=replace(full.train, batch_size=32, ema_decay=0.995, sample_every=200, checkpoint_every=200, gap_every=0),
    )


def emoji_256() -> Experiment:
    """Return the super-resolution preset 64 -> 256 for the emoji data, trained on 16 -> 64 crops."""
    unet = replace(
        SUPER_RESOLUTION,
        levels=(Level(channels=32, blocks=1, stride=1), Level(channels=64, blocks=2)),
        patch=2,
        text_width=MINILM.width,
        context_width=8,  # minimal: there is no attention, so only the pooled text is used
    )
    return _super_resolution("emoji_256", unet, low_resolution=64, crop=64, detail_std=0.1)


def emoji_1024() -> Experiment:
    """Return the super-resolution preset 256 -> 1024 for the emoji data, trained on 32 -> 128 crops.

    It is not conditioned on text, because an image of 256 pixels already determines the content.
    """
    unet = replace(
        SUPER_RESOLUTION, levels=(Level(channels=48, blocks=1, stride=1), Level(channels=64, blocks=1)), patch=4
    )
    return _super_resolution("emoji_1024", unet, low_resolution=256, crop=128, detail_std=0.05)


# Without attention, a network trained on crops can process whole images. The levels are small so that the 16-bit
# weights of all three stages take less than 40 MB.
SUPER_RESOLUTION = UNetConfig(
    levels=(Level(channels=32, blocks=1, stride=1),), resample="plain", low_res=True, time_width=128, norm_groups=4
)


def _super_resolution(name: str, unet: UNetConfig, *, low_resolution: int, crop: int, detail_std: float) -> Experiment:
    """Return a preset that diffuses the detail: most of a drawing is flat, and bicubic upsampling is exact there."""
    return Experiment(
        name=name,
        stage=StageConfig(
            resolution=4 * low_resolution,
            low_resolution=low_resolution,
            unet=unet,
            detail_std=detail_std,
            # Half of the noise levels are below sigma 0.24.
            low_res_schedule=ScheduleConfig(shift_reference=16 * low_resolution),
            objective=ObjectiveConfig(prediction="x0", weighting="velocity"),
            sampling=SamplingConfig(sampler="dpmpp_2m", steps=4, guidance=1.0, threshold="static", low_res_noise=0.05),
        ),
        text=None if unet.text_width is None else MINILM,
        data=DataConfig(crop=crop),
        optim=replace(OPTIM, muon_lr=2e-3),
        train=TrainConfig(
            steps=10_000, batch_size=32, ema_decay=0.999, sample_every=1000, checkpoint_every=500, gap_every=0
        ),
    )
