"""The five training jobs of the Paddle implementation (PaddleFleetX, projects/imagen, September 2022).

All of them use Adam with lr 1e-4, betas 0.9 and 0.999 and no weight decay, warm-up and then a cosine to 0, gradient
norms clipped to 1, text dropout 0.1, continuous time, the cosine schedule, the eps target, p2 weighting (gamma 0.5,
k 1), and at most 128 tokens of T5-11B (embedding dimension 1024). Sampling uses conditioning augmentation 0.2 and
dynamic thresholding at 0.95. The names give the published parameter counts, which these models match within 2 %.
"""

from dataclasses import replace

from imagen.cascade import SamplingConfig, StageConfig
from imagen.data.loading.config import DataConfig
from imagen.diffusion.objective import ObjectiveConfig
from imagen.models.config import UNetConfig
from imagen.presets.paper import efficient_levels, guided_levels
from imagen.text.config import TextConfig
from imagen.train.config import OptimConfig, ParallelConfig, TrainConfig
from imagen.train.experiment import Experiment

T5_11B = TextConfig(encoder="google-t5/t5-11b", width=1024)
DEBERTA = TextConfig(encoder="microsoft/deberta-v2-xxlarge", width=1536)
P2 = ObjectiveConfig(prediction="eps", weighting="p2", p2_gamma=0.5, p2_k=1.0)
SAMPLING = SamplingConfig(sampler="ddpm", steps=250, percentile=0.95, low_res_noise=0.2)


def text2im_64_397m() -> Experiment:
    """Base model at 64x64, 396M parameters: batch 16 on one GPU, or `--train.batch-size 2048` data-parallel on 128."""
    unet = UNetConfig(levels=guided_levels(224), text_width=T5_11B.width, time_width=4 * 224, head_channels=32)
    return _job("text2im_64_397m", StageConfig(resolution=64, unet=unet), batch_size=16)


def text2im_64_2b() -> Experiment:
    """Base model at 64x64, 2.0B parameters: 8 images per GPU on 256 GPUs, sharded over the 8 GPUs of each host."""
    unet = UNetConfig(levels=guided_levels(512), text_width=T5_11B.width, time_width=2048)
    job = _job("text2im_64_2b", StageConfig(resolution=64, unet=unet), batch_size=2048)
    return replace(job, parallel=ParallelConfig(shard=8))


def text2im_64_deberta() -> Experiment:
    """Base model like `text2im_64_397m`, conditioned on DeBERTa-v2-xxlarge (embedding dimension 1536)."""
    base = text2im_64_397m()
    unet = replace(base.stage.unet, text_width=DEBERTA.width)
    return replace(base, name="text2im_64_deberta", stage=replace(base.stage, unet=unet), text=DEBERTA)


def sr_256_600m() -> Experiment:
    """Super-resolution 64 -> 256, 601M parameters: 6 images per GPU on 128 GPUs, data-parallel."""
    unet = UNetConfig(
        levels=efficient_levels(8, attention="fused", feed_forward=2),
        family="efficient",
        middle=False,
        low_res=True,
        text_width=T5_11B.width,
        time_width=1024,
        head_channels=128,
    )
    return _job("sr_256_600m", StageConfig(resolution=256, low_resolution=64, unet=unet), batch_size=6 * 128)


def sr_1024_400m() -> Experiment:
    """Super-resolution 256 -> 1024, 400M parameters: 1 image per GPU on 128, sharded 8 ways, full checkpointing."""
    unet = UNetConfig(
        levels=efficient_levels(7, attention="cross"),
        family="efficient",
        skip="add",
        middle=False,
        low_res=True,
        text_width=T5_11B.width,
        head_channels=128,
    )
    stage = StageConfig(resolution=1024, low_resolution=256, unet=unet)
    job = _job("sr_1024_400m", stage, batch_size=128)
    return replace(job, data=DataConfig(crop=256), parallel=ParallelConfig(shard=8, checkpointing="full"))


def _job(name: str, stage: StageConfig, batch_size: int) -> Experiment:
    return Experiment(
        name=name,
        stage=replace(stage, objective=P2, sampling=SAMPLING),
        text=T5_11B,
        optim=OptimConfig(algorithm="adam"),
        train=TrainConfig(batch_size=batch_size),
    )
