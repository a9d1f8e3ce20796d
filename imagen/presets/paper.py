"""The paper's three models (arXiv 2205.11487, App. F), with T5-XXL text.

The paper trains each model with batch size 2048 for 2.5M steps and reports a zero-shot FID-30K of 7.27 on COCO for the
whole cascade. It does not specify the EMA decay (here 0.9999), the number of text tokens (128) or the text's dimension
before attention (512). The base is trained with Adafactor, to save memory, and the super-resolution models with Adam.
The settings of Adafactor are not specified; here beta1 is 0 and beta2 is at most 0.999.
"""

from dataclasses import replace

from imagen.cascade import SamplingConfig, StageConfig
from imagen.data.loading.config import DataConfig
from imagen.diffusion.schedule import ScheduleConfig
from imagen.models.config import Level, UNetConfig
from imagen.models.layers import AttentionKind
from imagen.text.config import TextConfig
from imagen.train.config import OptimConfig
from imagen.train.experiment import Experiment

T5_XXL = TextConfig(encoder="google/t5-v1_1-xxl", width=4096)


def guided_levels(channels: int) -> tuple[Level, ...]:
    """Return the levels of guided diffusion at 64x64 (App. F.1): channels x1, 2, 3, 4, with text at 32, 16 and 8."""
    return (
        Level(channels=channels, blocks=3, stride=1),
        Level(channels=2 * channels, blocks=3, attention="fused"),
        Level(channels=3 * channels, blocks=3, attention="fused"),
        Level(channels=4 * channels, blocks=3, attention="fused"),
    )


def efficient_levels(last_blocks: int, *, attention: AttentionKind, feed_forward: int = 0) -> tuple[Level, ...]:
    """Return the levels of the Efficient U-Net (App. B.1): all strided, with most parameters at low resolution."""
    return (
        Level(channels=128, blocks=2),
        Level(channels=256, blocks=4),
        Level(channels=512, blocks=8),
        Level(channels=1024, blocks=last_blocks, attention=attention, attend="last", feed_forward=feed_forward),
    )


def paper_base_64() -> Experiment:
    """Base model at 64x64 (App. F.1): 2.19B parameters."""
    return Experiment(
        name="paper_base_64",
        stage=StageConfig(
            resolution=64,
            unet=UNetConfig(levels=guided_levels(512), resample="residual", text_width=T5_XXL.width, time_width=2048),
            sampling=SamplingConfig(sampler="ddpm", steps=250, guidance=1.35),
        ),
        text=T5_XXL,
        optim=OptimConfig(algorithm="adafactor", betas=(0.0, 0.999)),
    )


def paper_sr_256() -> Experiment:
    """Super-resolution 64 -> 256 (App. F.2): the Efficient U-Net with self- and text attention at 16x16."""
    return Experiment(
        name="paper_sr_256",
        stage=StageConfig(
            resolution=256,
            low_resolution=64,
            unet=UNetConfig(
                levels=efficient_levels(8, attention="fused", feed_forward=2),
                family="efficient",
                modulation="level",
                shortcut="conv",
                middle=False,
                low_res=True,
                text_width=T5_XXL.width,
                head_channels=128,
            ),
            sampling=SamplingConfig(sampler="ddpm", steps=250, guidance=8.0, low_res_noise=0.0),
        ),
        text=T5_XXL,
        optim=OptimConfig(algorithm="adam"),
    )


def paper_sr_1024() -> Experiment:
    """Super-resolution 256 -> 1024 (App. F.3): text attention only, for training on crops."""
    base = paper_sr_256()
    unet = replace(base.stage.unet, levels=efficient_levels(8, attention="cross"), skip="add")
    stage = replace(base.stage, resolution=1024, low_resolution=256, unet=unet, schedule=ScheduleConfig(kind="linear"))
    return replace(base, name="paper_sr_1024", stage=stage, data=DataConfig(crop=256))
