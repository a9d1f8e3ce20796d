"""Presets for Fluent Emoji that train on two CPU cores: a base and two super-resolution stages.

In 16 bits all weights take less than 80 MB.
"""

from dataclasses import replace

from imagen.diffusion.schedule import ScheduleConfig
from imagen.emoji.presets import MINILM, emoji_64, emoji_256, emoji_1024
from imagen.models.config import Level, UNetConfig
from imagen.train.experiment import Experiment

UNET = UNetConfig(
    levels=(
        Level(channels=48, blocks=1, stride=1),
        Level(channels=64, blocks=1),
        Level(channels=160, blocks=1, attention="fused", attend="last"),
        Level(channels=320, blocks=1, attention="fused", attend="last"),
    ),
    patch=2,
    stem_channels=64,
    resample="plain",
    coordinates=True,
    text_width=MINILM.width,
    context_width=256,
    time_width=256,
    head_channels=32,
    norm_groups=4,
)


def fluent_64() -> Experiment:
    """Return the text -> 64 preset for Fluent Emoji, 17.1M parameters."""
    small = emoji_64()
    return replace(
        small,
        name="fluent_64",
        stage=replace(small.stage, unet=UNET),
        train=replace(
            small.train,
            steps=20_000,
            batch_size=128,
            # Lower noise than in `emoji_64`: it determines small drawings, such as those of counts and pairs.
            schedule=ScheduleConfig(shift_reference=16),
            ema_decay=0.999,
            gap_every=1000,
        ),
    )


def fluent_256() -> Experiment:
    """Return the super-resolution preset 64 -> 256 for Fluent Emoji, trained on 24 -> 96 crops."""
    small = emoji_256()
    levels = (Level(channels=48, blocks=1, stride=1), Level(channels=96, blocks=2), Level(channels=160, blocks=2))
    wider = _wider(small, "fluent_256", replace(small.stage.unet, levels=levels))
    return replace(
        wider,
        # The root mean square of the detail of drawings that a base redrew, with this blur (docs/LOG.md).
        stage=replace(wider.stage, detail_std=0.165, detail_blur=1.25),
        data=replace(wider.data, crop=96),
        train=replace(wider.train, batch_size=16),
    )


def fluent_1024() -> Experiment:
    """Return the super-resolution preset 256 -> 1024 for Fluent Emoji, trained on 32 -> 128 crops."""
    small = emoji_1024()
    levels = (Level(channels=64, blocks=1, stride=1), Level(channels=96, blocks=2))
    wider = _wider(small, "fluent_1024", replace(small.stage.unet, levels=levels))
    return replace(wider, stage=replace(wider.stage, detail_std=0.065, detail_blur=1.25))  # measured as above


def _wider(small: Experiment, name: str, unet: UNetConfig) -> Experiment:
    return replace(small, name=name, stage=replace(small.stage, unet=unet), train=replace(small.train, steps=8_000))
