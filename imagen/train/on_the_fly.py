"""Training without stored embeddings: the frozen encoder encodes the captions of each batch, on the training device.

NOTE nothing is cached between batches. The last bits of an embedding depend on the other captions of the same encoder
call. A cached embedding would therefore depend on earlier batches, and a resumed run would differ from an uninterrupted
one.
"""

from collections.abc import Iterator
from dataclasses import replace

from torch import Tensor

from imagen.data.embed.encode import BATCH_TOKENS, token_batches
from imagen.data.loading.batches import Batch
from imagen.data.loading.loader import Loader
from imagen.text.embeddings import pad_embeddings, unconditional_embedding
from imagen.text.protocol import DatasetEncoder


class EncodingLoader:
    """Adds the text embeddings of an encoder to the batches of a loader without text."""

    def __init__(self, loader: Loader, encoder: DatasetEncoder):
        self.loader, self.encoder = loader, encoder

    def __iter__(self) -> Iterator[Batch]:
        for batch in self.loader:
            yield with_text(batch, self.encoder)


def with_text(batch: Batch, encoder: DatasetEncoder) -> Batch:
    """Return `batch` with the embeddings of its captions, [B, L, D] and [B, L], which depend only on its captions."""
    captions = list(dict.fromkeys(batch.captions))
    tokens: dict[str, Tensor] = {}
    for rows in token_batches(encoder.lengths(captions), BATCH_TOKENS):
        together = [captions[row] for row in rows]
        tokens.update(zip(together, map(_stored, encoder.encode(together)), strict=True))
    text_BLD, mask_BL = pad_embeddings([tokens[caption] for caption in batch.captions])
    return replace(batch, text=text_BLD, text_mask=mask_BL)


def unconditional(encoder: DatasetEncoder) -> Tensor:
    """Return the unconditional embedding [L0, D], float32, as a sidecar would store it."""
    return _stored(unconditional_embedding(encoder.config, lambda: encoder.encode([""])[0]))


def _stored(tokens_LD: Tensor) -> Tensor:
    """Round to bfloat16, as a sidecar does: a run may resume with sidecars or without."""
    return tokens_LD.bfloat16().float()
