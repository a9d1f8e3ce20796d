"""The interface of feature extractors, and their table."""

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from imagen.errors import UserError, suggest

Device = torch.device | str


class Extractor(Protocol):
    """Compute features of images."""

    name: str  # identifies weights and preprocessing; part of the key of cached features
    description: str  # the same in words, for reports

    def __call__(self, images_BCHW: Tensor) -> Tensor:
        """Return features, float32 [B, D] on the CPU, of uint8 images [B, 3, H, W]."""
        ...


def _inception(argument: str, device: Device) -> Extractor:
    from imagen.evaluate.extractors.inception import Inception

    return Inception(device, argument or None)


def _efficientnet(argument: str, device: Device) -> Extractor:
    from imagen.evaluate.extractors.efficientnet import EfficientNet

    return EfficientNet(device)


def _clip(argument: str, device: Device) -> Extractor:
    from imagen.evaluate.extractors.hub import Clip

    return Clip(argument or "openai/clip-vit-large-patch14-336", device)


def _dinov2(argument: str, device: Device) -> Extractor:
    from imagen.evaluate.extractors.hub import DinoV2

    return DinoV2(argument or "facebook/dinov2-large", device)


# After a colon: a file (inception) or a name or folder of transformers (clip, dinov2), as in "clip:/models/clip-b32".
EXTRACTORS: dict[str, Callable[[str, Device], Extractor]] = {
    "inception": _inception,
    "efficientnet": _efficientnet,
    "clip": _clip,
    "dinov2": _dinov2,
}


def load_extractor(spec: str, device: Device = "cpu") -> Extractor:
    """Return the extractor NAME or NAME:WEIGHTS. Raises UserError if it is unknown or its weights are missing."""
    name, _, argument = spec.partition(":")
    if name not in EXTRACTORS:
        raise UserError(
            f"unknown feature extractor {name!r}{suggest(name, EXTRACTORS, 'known: ' + ', '.join(EXTRACTORS))}"
        )
    return EXTRACTORS[name](argument, device)
