"""Models for thousands of photographs on one GPU of 24 GB: bases of 50M and 150M, and super-resolution to 256.

All take text from T5-base (`imagen data encode SHARDS --encoder google-t5/t5-base`), so that every base fits every
super-resolution stage. With another encoder, set its name and embedding dimension, for T5-small

    --text.encoder google-t5/t5-small --text.width 512 --stage.unet.text_width 512

The structure is the paper's at smaller sizes; all channels are multiples of 64. Training follows later work: v with
min-SNR weights for the base (2202.00512, 2303.09556), and detail in place of the image for super-resolution, which has
no attention between pixels and trains on crops. None of them has been trained; docs/howto/photographs.md says how to.
"""

from imagen.cascade import SamplingConfig, StageConfig
from imagen.data.loading.config import DataConfig
from imagen.diffusion.objective import ObjectiveConfig
from imagen.models.config import Level, UNetConfig
from imagen.text.config import TextConfig
from imagen.train.config import OptimConfig, TrainConfig
from imagen.train.experiment import Experiment

T5_BASE = TextConfig(encoder="google-t5/t5-base", width=768)


def photos_64_50m() -> Experiment:
    """Base model at 64x64, 50M parameters: begin with this one, for 2,000 to 50,000 photographs."""
    return _base("photos_64_50m", channels=(64, 128, 256, 384), blocks=(2, 2, 2, 2), lr=2e-4)


def photos_64_150m() -> Experiment:
    """Base model at 64x64, 151M parameters, for more photographs or more time."""
    return _base("photos_64_150m", channels=(128, 256, 384, 512), blocks=(3, 3, 3, 4), lr=1e-4)


def photos_256_50m() -> Experiment:
    """Super-resolution 64 -> 256 on crops of 128, 50M parameters."""
    return _super_resolution("photos_256_50m", channels=(64, 128, 256, 384), blocks=(2, 2, 4, 5), lr=2e-4)


def photos_256_150m() -> Experiment:
    """Super-resolution 64 -> 256 on crops of 128, 148M parameters."""
    return _super_resolution("photos_256_150m", channels=(128, 256, 448, 768), blocks=(2, 2, 4, 4), lr=1e-4)


def _base(name: str, *, channels: tuple[int, ...], blocks: tuple[int, ...], lr: float) -> Experiment:
    levels = tuple(
        Level(channels=width, blocks=count, stride=2 if i else 1, attention="fused" if i else "none")
        for i, (width, count) in enumerate(zip(channels, blocks, strict=True))
    )
    unet = UNetConfig(levels=levels, text_width=T5_BASE.width, time_width=4 * channels[0], dropout=0.1)
    stage = StageConfig(
        resolution=64,
        unet=unet,
        objective=ObjectiveConfig(prediction="v", weighting="min_snr"),
        sampling=SamplingConfig(steps=30, spacing="auto", guidance=4.0),
    )
    return _experiment(name, stage, DataConfig(flip=True, workers=4), lr=lr, batch_size=128)


def _super_resolution(name: str, *, channels: tuple[int, ...], blocks: tuple[int, ...], lr: float) -> Experiment:
    *outer, last = zip(channels, blocks, strict=True)
    unet = UNetConfig(
        levels=(
            *(Level(channels=width, blocks=count) for width, count in outer),
            Level(channels=last[0], blocks=last[1], attention="cross", attend="last"),
        ),
        family="efficient",
        skip="add",
        middle=False,
        low_res=True,
        text_width=T5_BASE.width,
    )
    stage = StageConfig(
        resolution=256,
        low_resolution=64,
        unet=unet,
        # The root mean square of the detail was 0.06 to 0.17, on the mean 0.11, in nine photographs of scikit-learn and
        # scikit-image at 256 pixels.
        detail_std=0.11,
        objective=ObjectiveConfig(prediction="v", weighting="min_snr"),
        sampling=SamplingConfig(steps=20, spacing="auto", guidance=1.5, threshold="static", low_res_noise=0.1),
    )
    return _experiment(name, stage, DataConfig(crop=128, flip=True, workers=4), lr=lr, batch_size=64)


def _experiment(name: str, stage: StageConfig, data: DataConfig, *, lr: float, batch_size: int) -> Experiment:
    train = TrainConfig(
        steps=100_000, batch_size=batch_size, sample_every=2_000, checkpoint_every=2_000, gap_every=1_000
    )
    optim = OptimConfig(lr=lr, betas=(0.9, 0.99), weight_decay=0.01, warmup_steps=1_000)
    return Experiment(name=name, stage=stage, text=T5_BASE, data=data, optim=optim, train=train)
