"""Define the configuration of a text encoder."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from imagen import limits

EMBEDDED_ENCODER = "sentence-transformers/all-MiniLM-L6-v2"
Cleaning = Literal["none", "lower", "caption"]


@dataclass(frozen=True, kw_only=True)
class TextConfig:
    """Configure a text encoder and its embeddings."""

    encoder: str = EMBEDDED_ENCODER  # a Hugging Face name, or a local folder, possibly of a diffusers pipeline
    revision: str = "main"  # branch, tag or commit on the Hugging Face hub
    width: int = 384  # D, the embedding dimension
    max_tokens: int = 128  # token limit, special tokens included
    cleaning: Cleaning = "none"  # applied to a caption before it is tokenised: see `imagen.text.cleaning`
    # trim: embeddings have the length of their captions. full: all have max_tokens tokens, and the model treats the
    # encoder's output at padding tokens as text (DeepFloyd IF).
    padding: Literal["trim", "full"] = "trim"
    # The unconditional embedding: one zero token (the paper zeroes embeddings) or the embedding of "" (IF).
    unconditional: Literal["zeros", "empty"] = "zeros"

    def check(self) -> None:
        """Raise UserError, naming the field, unless every value is in its range."""
        limits.check(self, limits.TEXT, "text.")


def absolute(encoder: str) -> str:
    """Return the absolute path of an encoder in a local folder, since what names it may be used from another folder.

    Names on the Hugging Face hub remain as they are.
    """
    return str(Path(encoder).resolve()) if encoder != EMBEDDED_ENCODER and Path(encoder).is_dir() else encoder
