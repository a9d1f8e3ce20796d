"""Extract features with CLIP and DINOv2, loaded by transformers from a name on the hub or a folder.

CLIP's preprocessing of images is part of its config. DINOv2 gets the whole image: see the class.
"""

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from imagen.errors import UserError

_BATCH = 256  # captions per forward pass
_DINOV2_SIDE = 224


class Clip:
    """Extract CLIP's projected image features, and embed captions in the same space."""

    def __init__(self, weights: str, device: torch.device | str = "cpu"):
        from transformers import AutoTokenizer, CLIPModel

        self.device = torch.device(device)
        model = _network(CLIPModel, weights)
        self.tokenizer = _load(AutoTokenizer, weights, trust_remote_code=False)
        self.processor = _processor(weights)
        self.name, self.description = f"clip-{_hash(model, self.processor)}", f"CLIP ({weights})"
        self.model = model.to(self.device)

    @torch.no_grad()
    def __call__(self, images_BCHW: Tensor) -> Tensor:
        pooled_BD = self.model.vision_model(pixel_values=prepare(self.processor, images_BCHW, self.device))[1]
        features_BD: Tensor = self.model.visual_projection(pooled_BD)
        return features_BD.float().cpu()

    @torch.no_grad()
    def embed(self, captions: Sequence[str]) -> Tensor:
        """Return caption embeddings, float32 [N, D]; captions are truncated to the text encoder's 77 tokens."""
        most = self.model.config.text_config.max_position_embeddings  # a tokenizer's config may not have it
        parts = []
        for start in range(0, len(captions), _BATCH):
            tokens = self.tokenizer(
                list(captions[start : start + _BATCH]),
                padding=True,
                truncation=True,
                max_length=most,
                return_tensors="pt",
            )
            pooled_BD = self.model.text_model(**tokens.to(self.device))[1]
            parts.append(self.model.text_projection(pooled_BD).float().cpu())
        return torch.cat(parts)


class DinoV2:
    """Extract DINOv2's class token after the last norm: FD-DINOv2 of Stein et al. (2306.04675).

    As in the authors' code, the whole image is resized to 224 x 224. The preprocessing in the config of the published
    weights would resize to 256 and crop an eighth of the image away.
    """

    def __init__(self, weights: str, device: torch.device | str = "cpu"):
        from transformers import Dinov2Model

        self.device = torch.device(device)
        model = _network(Dinov2Model, weights)
        side = {"height": _DINOV2_SIDE, "width": _DINOV2_SIDE}
        self.processor = _processor(weights, do_resize=True, size=side, do_center_crop=False)
        self.name, self.description = f"dinov2-{_hash(model, self.processor)}", f"DINOv2 ({weights})"
        self.model = model.to(self.device)

    @torch.no_grad()
    def __call__(self, images_BCHW: Tensor) -> Tensor:
        output = self.model(pixel_values=prepare(self.processor, images_BCHW, self.device))
        features_BD: Tensor = output.last_hidden_state[:, 0]
        return features_BD.float().cpu()


def _network(kind: Any, weights: str) -> Any:
    """Load a network in float32. Raises UserError for weights that transformers would replace by random ones."""
    expected = kind.config_class.model_type
    found = _call(kind.config_class.get_config_dict, weights)[0].get("model_type", expected)
    if found != expected:
        raise UserError(f"{weights} has weights of the type {found!r}; the feature extractor needs {expected!r}")
    # Without a dtype, some versions of transformers would compute in that of the file, others in float32.
    options = {"use_safetensors": True, "dtype": torch.float32}
    model, info = _load(kind, weights, output_loading_info=True, ignore_mismatched_sizes=True, **options)
    random = sorted([*info["missing_keys"], *(name for name, *_ in info["mismatched_keys"])])
    if random:
        raise UserError(
            f"{weights} has no {random[0]} of the shape that the feature extractor needs; copy or download it again"
        )
    return model.eval()


def _processor(weights: str, **changes: Any) -> Any:
    from transformers import AutoImageProcessor

    # The fast processors need torchvision. By default transformers would offer to run code of the repository.
    return _load(AutoImageProcessor, weights, use_fast=False, trust_remote_code=False, **changes)


def _hash(model: Any, processor: Any) -> str:
    """Return a hash of the network, its weights and the preprocessing: a name or folder may get other content."""
    digest = hashlib.sha256(f"{model}{processor.to_json_string()}".encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.reshape(-1).contiguous().numpy())
    return digest.hexdigest()[:32]


def _load(kind: Any, weights: str, **options: Any) -> Any:
    return _call(kind.from_pretrained, weights, **options)


def _call(load: Callable[..., Any], weights: str, **options: Any) -> Any:
    try:
        return load(weights, **options)
    except (OSError, ValueError, SafetensorError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"{weights}: the feature extractor cannot be loaded: {reason}") from None


def prepare(processor: Any, images_BCHW: Tensor, device: torch.device) -> Tensor:
    """Return the network's input of uint8 images [B, 3, H, W]."""
    pixels = processor(list(images_BCHW.cpu().numpy()), return_tensors="pt", input_data_format="channels_first")
    x_BCHW: Tensor = pixels["pixel_values"].to(device)
    return x_BCHW
