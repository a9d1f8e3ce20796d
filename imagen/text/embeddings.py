"""Pad text embeddings to a batch, and build the unconditional embedding.

Shapes: B captions, L tokens, D embedding dimension.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from imagen.text.config import TextConfig


def pad_embeddings(embeddings: Sequence[Tensor], length: int = 0) -> tuple[Tensor, Tensor]:
    """Return embeddings [L_i, D] as one zero-padded [B, L, D] and its mask [B, L], True at tokens.

    L is the length of the longest embedding, and at least `length`.
    """
    length = max(length, *(len(text_LD) for text_LD in embeddings))
    text_BLD = embeddings[0].new_zeros(len(embeddings), length, embeddings[0].shape[1])
    for padded_LD, text_LD in zip(text_BLD, embeddings, strict=True):
        padded_LD[: len(text_LD)] = text_LD
    lengths_B1 = torch.tensor([[len(text_LD)] for text_LD in embeddings])
    return text_BLD, torch.arange(length) < lengths_B1


def pad_to_length(text_BLD: Tensor, mask_BL: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """Pad a batch of embeddings and its mask to at least `length` tokens."""
    missing = length - text_BLD.shape[1]
    if missing <= 0:
        return text_BLD, mask_BL
    return F.pad(text_BLD, (0, 0, 0, missing)), F.pad(mask_BL, (0, missing))


def unconditional_embedding(config: TextConfig, encode_empty: Callable[[], Tensor]) -> Tensor:
    """Return the unconditional embedding, [L0, D] float32.

    encode_empty: returns the embedding of ""; called only if `config.unconditional` is "empty".
    """
    if config.unconditional == "zeros":
        return torch.zeros(1, config.width)
    return encode_empty()
