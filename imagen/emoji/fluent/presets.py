"""Presets for Fluent Emoji that train on two CPU cores.

The base trains at 32 pixels first and then at 64; two super-resolution stages follow. In 16 bits all weights take less
than 80 MB.
"""

from dataclasses import replace

from imagen.emoji.presets import MINILM, emoji_64, emoji_256, emoji_1024
from imagen.models.config import Level, UNetConfig
from imagen.train.experiment import Experiment

# The level at half of 64 pixels, which the base of 32 pixels lacks.
OUTER = Level(channels=64, blocks=1, stride=1)
# Levels at 16 x 16, 8 x 8 and 4 x 4, for images of 32 and of 64 pixels.
INNER = (
    Level(channels=128, blocks=1),
    Level(channels=256, blocks=1, attention="fused", attend="last"),
    Level(channels=320, blocks=1, attention="fused", attend="last"),
)
UNET = UNetConfig(
    levels=(OUTER, *INNER),
    patch=2,
    resample="plain",
    coordinates=True,
    text_width=MINILM.width,
    context_width=256,
    time_width=256,
    norm_groups=4,
)


def fluent_64() -> Experiment:
    """Return the text -> 64 preset for Fluent Emoji, initialised from `fluent_32` by `imagen.emoji.fluent.grow`."""
    small = emoji_64()
    return replace(
        small,
        name="fluent_64",
        stage=replace(small.stage, unet=UNET),
        train=replace(small.train, steps=10_000, batch_size=64, ema_decay=0.999, gap_every=1000),
    )


def fluent_32() -> Experiment:
    """Return the text -> 32 preset for Fluent Emoji: `fluent_64` without its outer level, 1.5 times as fast."""
    full = fluent_64()
    inner = (replace(INNER[0], stride=1), *INNER[1:])
    return replace(
        full,
        name="fluent_32",
        # The stem has the channels of the outer level, so that the inner levels have the same shapes in both networks.
        stage=replace(full.stage, resolution=32, unet=replace(UNET, levels=inner, stem_channels=OUTER.channels)),
        train=replace(full.train, steps=20_000),
    )


def fluent_256() -> Experiment:
    """Return the super-resolution preset 64 -> 256 for Fluent Emoji, trained on 16 -> 64 crops."""
    small = emoji_256()
    levels = (Level(channels=48, blocks=1, stride=1), Level(channels=96, blocks=2), Level(channels=160, blocks=2))
    return _wider(small, "fluent_256", replace(small.stage.unet, levels=levels))


def fluent_1024() -> Experiment:
    """Return the super-resolution preset 256 -> 1024 for Fluent Emoji, trained on 32 -> 128 crops."""
    small = emoji_1024()
    levels = (Level(channels=64, blocks=1, stride=1), Level(channels=96, blocks=2))
    return _wider(small, "fluent_1024", replace(small.stage.unet, levels=levels))


def _wider(small: Experiment, name: str, unet: UNetConfig) -> Experiment:
    return replace(small, name=name, stage=replace(small.stage, unet=unet), train=replace(small.train, steps=8_000))
