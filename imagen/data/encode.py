"""Text embeddings of every caption of a data set, computed once and stored beside the shards."""

from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from imagen.data.embeddings import TextLike, matches_sidecar, to_bf16_bits, write_sidecar
from imagen.data.shards import ShardedDataset, index_folder, open_split, splits
from imagen.errors import UserError


class Encoder(Protocol):
    """`imagen.models.text.TextEncoder`, which data may not import."""

    @property
    def config(self) -> TextLike: ...
    def encode(self, captions: list[str]) -> list[Tensor]: ...


def encode_shards(folder: str | Path, encoder: Encoder, batch_size: int = 64, progress: bool = True) -> int:
    """Write the sidecar of every shard of `folder` (all its splits) that lacks a whole, matching one.

    Indexes shards that have no index yet, so this is the one step between img2dataset's output and
    training. May be killed and rerun at any time. Returns how many shards were encoded.
    Raises UserError naming the sample whose embedding is not finite, and for broken shards.
    """
    index_folder(folder)
    datasets = [open_split(folder, split) for split in splits(folder)]
    todo = [
        (dataset, shard)
        for dataset in datasets
        for shard in range(len(dataset.shards))
        if not matches_sidecar(dataset, shard, encoder.config)
    ]
    if not todo:
        return 0
    _captions(*todo[0])  # before the encoder is loaded, which may take minutes
    unconditional = _checked_bits(encoder.encode([""])[0], encoder.config, "the empty caption")
    total = sum(int(dataset.sizes[shard]) for dataset, shard in todo)
    with tqdm(total=total, unit=" captions", desc="encode", disable=not progress) as bar:
        for dataset, shard in todo:
            _encode_shard(dataset, shard, encoder, unconditional, batch_size, bar)
    return len(todo)


def _captions(dataset: ShardedDataset, shard: int) -> list[str]:
    """Those of a shard; UserError if there is none at all."""
    captions = dataset.captions(shard)
    if captions and not any(captions):
        raise UserError(f"{dataset.tar_path(shard)} has no captions (KEY.txt members); nothing to encode")
    return captions


def _encode_shard(
    dataset: ShardedDataset, shard: int, encoder: Encoder, unconditional: np.ndarray, batch_size: int, bar: tqdm
) -> None:
    captions = _captions(dataset, shard)
    first = int(dataset.sizes[:shard].sum())
    bits: list[np.ndarray] = [np.empty(0)] * len(captions)
    # Captions of like length share a batch, so that little is spent on padding.
    order = sorted(range(len(captions)), key=lambda row: len(captions[row]), reverse=True)
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        for row, tokens_LD in zip(rows, encoder.encode([captions[row] for row in rows]), strict=True):
            bits[row] = _checked_bits(tokens_LD, encoder.config, f"sample {dataset.key(first + row)!r}")
        bar.update(len(rows))
    write_sidecar(dataset.tar_path(shard), encoder.config, captions, bits, unconditional)


def _checked_bits(tokens_LD: Tensor, text: TextLike, what: str) -> np.ndarray:
    if tokens_LD.shape[-1] != text.width:
        raise UserError(f"{text.encoder} gives {tokens_LD.shape[-1]} numbers a token, text.width is {text.width}")
    # In bf16, which is what is stored: a finite float32 near its maximum rounds to infinity.
    if not torch.isfinite(tokens_LD.to(torch.bfloat16)).all():
        raise UserError(f"{text.encoder} gives NaN or infinity for {what}; encode with another precision (float32)")
    return to_bf16_bits(tokens_LD)
