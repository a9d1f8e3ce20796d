"""Tiny models that run every code path on a CPU in seconds. Their samples are noise."""

from dataclasses import replace

from imagen.cascade import SamplingConfig
from imagen.emoji.presets import MINILM, emoji_64, emoji_256, emoji_1024
from imagen.models.config import Level
from imagen.train.config import TrainConfig
from imagen.train.experiment import Experiment


def debug_64() -> Experiment:
    """Base model at 64x64 with every kind of layer; 100 steps take half a minute on two CPU cores."""
    return _tiny(
        emoji_64(), "debug_64", Level(channels=32, blocks=1, stride=1), Level(channels=64, blocks=1, attention="fused")
    )


def debug_256() -> Experiment:
    """Super-resolution 64 -> 256 with a tiny Efficient U-Net."""
    return _efficient(emoji_256(), "debug_256")


def debug_1024() -> Experiment:
    """Super-resolution 256 -> 1024 with a tiny Efficient U-Net."""
    return _efficient(emoji_1024(), "debug_1024")


def _efficient(base: Experiment, name: str) -> Experiment:
    stage = base.stage
    unet = replace(
        stage.unet,
        family="efficient",
        modulation="level",
        shortcut="conv",
        skip="add",
        middle=False,
        head_channels=32,
        text_width=MINILM.width,
    )
    last = Level(channels=64, blocks=1, attention="cross", attend="last", feed_forward=2)
    return _tiny(replace(base, stage=replace(stage, unet=unet), text=MINILM), name, Level(channels=32, blocks=1), last)


def _tiny(base: Experiment, name: str, *levels: Level) -> Experiment:
    stage = base.stage
    unet = replace(stage.unet, levels=levels, patch=4, context_width=64, time_width=64)
    return replace(
        base,
        name=name,
        stage=replace(stage, unet=unet, sampling=SamplingConfig(steps=4)),
        train=TrainConfig(
            steps=100,
            batch_size=8,
            ema_decay=0.99,
            log_every=10,
            sample_every=50,
            checkpoint_every=50,
            gap_every=50,
            gap_samples=16,
        ),
    )
