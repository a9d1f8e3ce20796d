"""Training without stored embeddings: the frozen encoder reads the captions of each batch, on the training device.

NOTE nothing is kept from one batch to the next. In its last bits an embedding depends on the captions that share the
encoder's call; out of a cache it would depend on what the run has seen before, and a resumed run would differ from an
uninterrupted one. Nor is there much to keep: who has few captions has the disk for their embeddings.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from imagen.data.embed.encode import BATCH_TOKENS, token_batches
from imagen.data.loading.batches import Batch
from imagen.data.loading.config import DataConfig
from imagen.data.loading.loader import Loader
from imagen.data.shards.dataset import ShardedDataset
from imagen.text.embeddings import pad_embeddings, unconditional_embedding
from imagen.text.encoder import LazyEncoder
from imagen.text.protocol import DatasetEncoder
from imagen.train.config import Experiment


def caption_encoder(experiment: Experiment, device: torch.device | str) -> LazyEncoder | None:
    """The encoder of a run that encodes on the fly; None for others."""
    if experiment.text is None or not experiment.data.on_the_fly:
        return None
    return LazyEncoder(experiment.text, device)


def open_loader(
    experiment: Experiment, data: Path, config: DataConfig, encoder: DatasetEncoder | None, **options: Any
) -> "Loader | EncodingLoader":
    """Batches for `experiment`, with its text: from the sidecars, or from `encoder` if there is one."""
    stage = experiment.stage
    loader = Loader(
        data,
        config,
        resolution=stage.resolution,
        low_resolution=stage.low_resolution,
        text=experiment.text if encoder is None else None,
        channels=stage.unet.image_channels,
        **options,
    )
    return loader if encoder is None else EncodingLoader(loader, encoder)


class EncodingLoader:
    """A loader without text, and an encoder: together as a loader with text."""

    def __init__(self, loader: Loader, encoder: DatasetEncoder):
        self.loader, self.encoder = loader, encoder

    @property
    def dataset(self) -> ShardedDataset:
        return self.loader.dataset

    @property
    def unconditional(self) -> Tensor:
        return unconditional(self.encoder)

    def __iter__(self) -> Iterator[Batch]:
        for batch in self.loader:
            yield with_text(batch, self.encoder)


def with_text(batch: Batch, encoder: DatasetEncoder) -> Batch:
    """`batch` with the embeddings of its captions, [B, L, D] and [B, L]: a function of its captions alone."""
    captions = list(dict.fromkeys(batch.captions))
    tokens: dict[str, Tensor] = {}
    for rows in token_batches(encoder.lengths(captions), BATCH_TOKENS):
        together = [captions[row] for row in rows]
        tokens.update(zip(together, map(_stored, encoder.encode(together)), strict=True))
    text_BLD, mask_BL = pad_embeddings([tokens[caption] for caption in batch.captions])
    return replace(batch, text=text_BLD, text_mask=mask_BL)


def unconditional(encoder: DatasetEncoder) -> Tensor:
    """Return the unconditional embedding as a sidecar would hold it, [L0, D] float32."""
    return _stored(unconditional_embedding(encoder.config, lambda: encoder.encode([""])[0]))


def _stored(tokens_LD: Tensor) -> Tensor:
    """Rounded as a sidecar holds it: a run may go on with one, and a run with one may go on without."""
    return tokens_LD.bfloat16().float()
