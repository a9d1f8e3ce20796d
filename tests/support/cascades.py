"""Build small cascades with random weights or known outputs, and a text encoder that needs no files."""

import dataclasses
import hashlib
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from imagen.cascade import Cascade, SamplingConfig, Stage, StageConfig
from imagen.diffusion.objective import ObjectiveConfig
from imagen.models.config import Level, UNetConfig
from imagen.models.unet import UNet
from imagen.text.config import TextConfig

WIDTH = 16
TEXT = TextConfig(encoder="words", width=WIDTH)
QUICK = {"device": "cpu", "precision": "fp32", "progress": False}


class WordTokenEncoder:
    """Encodes each word as one token that depends on the word alone, and records the prompts."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    def encode(self, prompts: list[str]) -> list[Tensor]:
        self.seen += prompts
        return [torch.stack([self._token(word) for word in prompt.split()]) for prompt in prompts]

    @staticmethod
    def _token(word: str) -> Tensor:
        seed = int.from_bytes(hashlib.sha256(word.encode()).digest()[:4], "big")
        return torch.randn(WIDTH, generator=torch.Generator().manual_seed(seed))


def stage(resolution: int, low_resolution: int | None = None, *, text: bool = True, seed: int = 0) -> Stage:
    """Return a stage with a small U-Net. All weights are random, so that images depend on all inputs."""
    unet = UNetConfig(
        levels=(
            Level(channels=32, blocks=1, stride=1),
            Level(channels=32, blocks=1, stride=4, attention="fused" if text else "none"),
        ),
        low_res=low_resolution is not None,
        text_width=WIDTH if text else None,
        context_width=32,
        time_width=32,
        head_channels=16,
        middle=False,
    )
    config = StageConfig(
        resolution=resolution,
        low_resolution=low_resolution,
        unet=unet,
        objective=ObjectiveConfig(prediction="v"),
        sampling=SamplingConfig(steps=3, guidance=2.0),
    )
    torch.manual_seed(seed + resolution)
    network = UNet(unet)
    for parameter in network.parameters():
        if parameter.ndim > 1:  # leave the norms unchanged
            nn.init.normal_(parameter, std=2 / parameter[0].numel() ** 0.5)
    return Stage(config, network.eval(), {"step": 7})


def cascade(*stages: Stage, **options: bool) -> Cascade:
    """Return a cascade of these stages; by default of 16 and 32 pixels."""
    stages = stages or (stage(16), stage(32, 16))
    return Cascade(stages, text=TEXT, unconditional=torch.zeros(1, WIDTH), encoder=WordTokenEncoder(), **options)


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image).astype(int)


def max_difference(a: Image.Image, b: Image.Image) -> int:
    """Return the largest difference of a channel of a pixel, in [0, 255]."""
    return int(np.abs(pixels(a) - pixels(b)).max())


class RecordingUNet(nn.Module):
    """Returns the low-resolution image as x0, and records its inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor, noise: Tensor, *, low_res: Tensor, low_res_noise: Tensor) -> Tensor:
        self.seen.append(x)
        self.low_res, self.low_res_noise = low_res, low_res_noise
        self.autocast = torch.is_autocast_enabled("cpu")
        return low_res.bfloat16() if self.autocast else low_res


def recording_cascade(**changes) -> tuple[Cascade, RecordingUNet]:
    """Return a cascade of one super-resolution stage, 16 to 64 pixels, and its network. changes: of the StageConfig."""
    config = dataclasses.replace(
        stage(64, 16, text=False).config, objective=ObjectiveConfig(prediction="x0"), **changes
    )
    network = RecordingUNet()
    return Cascade([Stage(config, network)]), network


def save_cascade(*stages: Stage, path: Path) -> Path:
    """Save a cascade of these stages in `path`, and return the path."""
    cascade(*stages).save(path)
    return path


def flip_a_byte(folder: Path, pattern: str) -> None:
    """Flip a bit in the last byte of the one file that matches."""
    (path,) = folder.glob(pattern)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def noise_image(width: int, height: int, seed: int = 0) -> Image.Image:
    """Return an image of random pixels."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))
