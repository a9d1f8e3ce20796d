"""Encode the captions of shards, for `imagen data encode` and `imagen data emoji`."""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from imagen.data.build.engines import Engine
    from imagen.text.config import TextConfig


def encode(
    shards: Path,
    text: "TextConfig",
    *,
    batch_tokens: int = 8192,
    device: str | None = None,
    engine: "Engine | None" = None,
) -> int:
    """Write text embeddings beside the shards; return how many shards were encoded.

    device: None for the default one. engine: runs the work in its workers.
    """
    from imagen.cli.devices import choose_device
    from imagen.data.embed.encode import encode_shards
    from imagen.text.encoder import LazyEncoder

    return encode_shards(shards, LazyEncoder(text, device or choose_device(None)), batch_tokens, engine=engine)
