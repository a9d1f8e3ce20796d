"""Extract features with CLIP and DINOv2, loaded by transformers from a name on the hub or a folder.

The preprocessing of images is part of their configs.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from imagen.errors import UserError

_BATCH = 256  # captions per forward pass


class Clip:
    """Extract CLIP's projected image features, and embed captions in the same space."""

    def __init__(self, weights: str, device: torch.device | str = "cpu"):
        from transformers import AutoTokenizer, CLIPModel

        self.device = torch.device(device)
        self.name, self.description = f"clip-{weights}", f"CLIP ({weights})"
        self.model = _load(CLIPModel, weights).to(self.device).eval()
        self.tokenizer = _load(AutoTokenizer, weights, safetensors=False)
        self.processor = _processor(weights)

    @torch.no_grad()
    def __call__(self, images_BCHW: Tensor) -> Tensor:
        pooled_BD = self.model.vision_model(pixel_values=_prepare(self.processor, images_BCHW, self.device))[1]
        features_BD: Tensor = self.model.visual_projection(pooled_BD)
        return features_BD.float().cpu()

    @torch.no_grad()
    def embed(self, captions: Sequence[str]) -> Tensor:
        """Return caption embeddings, float32 [N, D]; captions are truncated to 77 tokens."""
        parts = []
        for start in range(0, len(captions), _BATCH):
            tokens = self.tokenizer(
                list(captions[start : start + _BATCH]), padding=True, truncation=True, return_tensors="pt"
            )
            pooled_BD = self.model.text_model(**tokens.to(self.device))[1]
            parts.append(self.model.text_projection(pooled_BD).float().cpu())
        return torch.cat(parts)


class DinoV2:
    """Extract DINOv2's class token after the last norm: FD-DINOv2 of Stein et al. (2306.04675)."""

    def __init__(self, weights: str, device: torch.device | str = "cpu"):
        from transformers import Dinov2Model

        self.device = torch.device(device)
        self.name, self.description = f"dinov2-{weights}", f"DINOv2 ({weights})"
        self.model = _load(Dinov2Model, weights).to(self.device).eval()
        self.processor = _processor(weights)

    @torch.no_grad()
    def __call__(self, images_BCHW: Tensor) -> Tensor:
        output = self.model(pixel_values=_prepare(self.processor, images_BCHW, self.device))
        features_BD: Tensor = output.last_hidden_state[:, 0]
        return features_BD.float().cpu()


def _processor(weights: str) -> Any:
    from transformers import AutoImageProcessor

    return _load(AutoImageProcessor, weights, safetensors=False, use_fast=False)  # the fast one needs torchvision


def _load(kind: Any, weights: str, *, safetensors: bool = True, **options: Any) -> Any:
    try:
        return kind.from_pretrained(weights, **({"use_safetensors": True} if safetensors else {}), **options)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"{weights}: the feature extractor cannot be loaded: {reason}") from None


def _prepare(processor: Any, images_BCHW: Tensor, device: torch.device) -> Tensor:
    pixels = processor(list(images_BCHW.cpu().numpy()), return_tensors="pt", input_data_format="channels_first")
    x_BCHW: Tensor = pixels["pixel_values"].to(device)
    return x_BCHW
