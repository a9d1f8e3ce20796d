"""What other packages need of a text encoder. `imagen.text.encoder.TextEncoder` is one."""

from typing import Protocol

from torch import Tensor

from imagen.text.config import TextConfig


class Encoder(Protocol):
    """Encodes prompts. Enough for sampling."""

    def encode(self, captions: list[str], /) -> list[Tensor]:
        """Return one float32 CPU tensor [L_i, D] per caption."""
        ...


class DatasetEncoder(Encoder, Protocol):
    """Also says what its embeddings are and how long they will be. Needed to encode data sets."""

    @property
    def config(self) -> TextConfig: ...

    def lengths(self, captions: list[str], /) -> list[int]:
        """Return the number of tokens that `encode` gives each caption."""
        ...

    def untruncated_lengths(self, captions: list[str], /) -> list[int]:
        """Return the number of tokens of each caption before truncation at `config.max_tokens`."""
        ...
