"""Define the interfaces of a text encoder, which `imagen.text.encoder.TextEncoder` implements."""

from typing import Protocol

from torch import Tensor

from imagen.text.config import TextConfig


class Encoder(Protocol):
    """Encode prompts, for sampling."""

    def encode(self, captions: list[str], /) -> list[Tensor]:
        """Return one float32 CPU tensor [L_i, D] per caption."""
        ...


class DatasetEncoder(Encoder, Protocol):
    """Encode data sets: also describes its embeddings and their lengths."""

    @property
    def config(self) -> TextConfig:
        """Return the configuration of the embeddings."""
        ...

    def lengths(self, captions: list[str], /) -> list[int]:
        """Return the number of tokens that `encode` gives each caption."""
        ...

    def untruncated_lengths(self, captions: list[str], /) -> list[int]:
        """Return the number of tokens of each caption before truncation at `config.max_tokens`."""
        ...
