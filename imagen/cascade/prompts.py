"""Check the prompts of a request: texts, or embeddings in their place."""

import hashlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from imagen import limits
from imagen.cascade.options import Prompt
from imagen.errors import UserError, check_text, quoted
from imagen.text.config import TextConfig


def as_prompts(prompts: Prompt | Sequence[Prompt]) -> tuple[Prompt, ...]:
    """Return one prompt or several as a tuple, checked; embeddings as float32 [L, D] on the CPU. Raises UserError."""
    one = isinstance(prompts, str) or (isinstance(prompts, Tensor) and prompts.ndim < 3)
    return tuple(_checked(prompt) for prompt in ([prompts] if one else prompts))


def check_prompts(prompts: Sequence[Prompt], text: TextConfig | None) -> None:
    """Raise UserError for prompts that do not fit a cascade with this text encoder (None: without text)."""
    for prompt in prompts:
        if text is None:
            if isinstance(prompt, Tensor) or prompt:
                raise UserError("this cascade was trained without text: the only possible prompt is the empty one")
        elif isinstance(prompt, Tensor):
            length, dimension = prompt.shape
            if dimension != text.width:
                raise UserError(f"a prompt embedding has dimension {dimension}; {text.encoder} gives {text.width}")
            if length > text.max_tokens:
                raise UserError(f"a prompt embedding has {length} tokens; this cascade takes at most {text.max_tokens}")


def text_of(prompt: Prompt) -> str:
    """Return the text of a prompt; "" for an embedding, whose text is unknown."""
    return prompt if isinstance(prompt, str) else ""


def embedding_hash(prompt: Prompt) -> str | None:
    """Return the sha256 of an embedding's float32 values; None for text."""
    return None if isinstance(prompt, str) else hashlib.sha256(prompt.contiguous().numpy().tobytes()).hexdigest()


def _checked(prompt: Any) -> Prompt:
    if isinstance(prompt, Tensor):
        if prompt.ndim != 2 or not prompt.is_floating_point() or not len(prompt):
            raise UserError(
                f"a prompt embedding is {prompt.dtype} of shape {tuple(prompt.shape)}; "
                "it must be float [tokens, dimension]"
            )
        embedding: Tensor = prompt.detach().to("cpu", torch.float32)
        if not bool(embedding.isfinite().all()):
            raise UserError("a prompt embedding contains values that are not finite")
        return embedding
    if not isinstance(prompt, str):
        raise UserError(f"a prompt is {quoted(prompt)}; it must be text, or an embedding [tokens, dimension]")
    check_text("a prompt", prompt, limits.CHARACTERS)
    return prompt
