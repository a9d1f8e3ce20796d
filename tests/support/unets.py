"""Define small U-Net configs of every supported structure."""

import dataclasses

from imagen.models.config import Level, UNetConfig

GUIDED = UNetConfig(
    levels=(Level(channels=32, blocks=1, stride=1), Level(channels=64, blocks=2, attention="fused")),
    text_width=24,
    context_width=16,
    time_width=48,
    head_channels=32,
)
RESIDUAL = dataclasses.replace(GUIDED, resample="residual", patch=2, norm_groups=4, coordinates=True)
EFFICIENT = UNetConfig(
    levels=(
        Level(channels=32, blocks=1),
        Level(channels=64, blocks=2, attention="cross", attend="last", feed_forward=2),
    ),
    family="efficient",
    middle=False,
    low_res=True,
    text_width=24,
    context_width=16,
    time_width=48,
    head_channels=32,
)
ADDED = dataclasses.replace(EFFICIENT, skip="add", modulation="level", shortcut="conv")
DEEPFLOYD = dataclasses.replace(
    GUIDED,
    levels=(*GUIDED.levels, Level(channels=64, blocks=1, attention="cross")),
    resample="residual",
    low_res=True,
    activation="gelu",
    context_norm="group",
    middle_attention="fused",
    pooling_heads=4,
    residual_divisor=1 / 0.7071,
)
UNCONDITIONAL = UNetConfig(levels=(Level(channels=32, blocks=1, attention="self"),), head_channels=16)
STRUCTURES = {
    "guided": GUIDED,
    "residual": RESIDUAL,
    "plain": dataclasses.replace(GUIDED, resample="plain"),
    "efficient": EFFICIENT,
    "added": ADDED,
    "unconditional": UNCONDITIONAL,
    "deepfloyd": DEEPFLOYD,
}
