"""Text embeddings of every caption of a data set, computed once and stored beside the shards."""

from collections.abc import Callable
from pathlib import Path
from time import sleep
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from imagen.data.claims import Claims
from imagen.data.embeddings import TextLike, matches_sidecar, sidecar_path, to_bf16_bits, write_sidecar
from imagen.data.shards import ShardedDataset, index_folder, open_split, splits
from imagen.errors import UserError

BATCH_TOKENS = 8192
_POLL = 1.0  # seconds between looks at what other processes are doing


class Encoder(Protocol):
    """`imagen.models.text.TextEncoder`, which data may not import."""

    @property
    def config(self) -> TextLike: ...
    def lengths(self, captions: list[str]) -> list[int]: ...
    def encode(self, captions: list[str]) -> list[Tensor]: ...


def encode_shards(
    folder: str | Path,
    encoder: Encoder,
    batch_tokens: int = BATCH_TOKENS,
    progress: bool = True,
    claims: Claims | None = None,
) -> int:
    """Write the sidecar of every shard of `folder` (all its splits) that lacks a whole, matching one.

    Indexes shards that have no index yet, so this is the one step between img2dataset's output and
    training. May be killed and rerun at any time, and run by any number of processes and machines at once:
    each shard is claimed by one, and all return when every shard is done. Returns how many this one encoded.
    Raises UserError naming the sample whose embedding is not finite, and for broken shards.
    """
    index_folder(folder)
    datasets = [open_split(folder, split) for split in splits(folder)]
    pending = [(dataset, shard) for dataset in datasets for shard in range(len(dataset.shards))]
    claims, encoded = claims or Claims(), 0
    total = sum(int(dataset.sizes.sum()) for dataset in datasets)
    with tqdm(total=total, unit=" captions", desc="encode", disable=not progress, delay=1) as bar:
        while pending:
            elsewhere = []  # shards that other processes are encoding
            for dataset, shard in pending:
                if matches_sidecar(dataset, shard, encoder.config):
                    bar.update(int(dataset.sizes[shard]))
                    continue
                with claims.claimed(sidecar_path(dataset.tar_path(shard), encoder.config)) as mine:
                    if not mine:
                        elsewhere.append((dataset, shard))
                    elif matches_sidecar(dataset, shard, encoder.config):  # finished between the look and the claim
                        bar.update(int(dataset.sizes[shard]))
                    else:
                        bar.set_description("encode", refresh=False)
                        encode_shard(dataset, shard, encoder, batch_tokens, bar.update)
                        encoded += 1
            if elsewhere and len(elsewhere) == len(pending):
                bar.set_description(f"encode: waiting for {len(elsewhere)} shards of other processes")
                sleep(_POLL)
            pending = elsewhere
    return encoded


def encode_shard(
    dataset: ShardedDataset,
    shard: int,
    encoder: Encoder,
    batch_tokens: int = BATCH_TOKENS,
    done: Callable[[int], object] = lambda captions: None,
) -> None:
    """Write the sidecar of one shard: a function of its captions, of the encoder and of `batch_tokens` alone.

    `done` is told of each batch how many captions it had. Raises UserError as `encode_shards` does.
    """
    captions, text = dataset.captions(shard), encoder.config
    if captions and not any(captions):  # said before the encoder is loaded, which may take minutes
        raise UserError(f"{dataset.tar_path(shard)} has no captions (KEY.txt members); nothing to encode")
    unconditional = _checked_bits(encoder.encode([""])[0], text, "the empty caption")
    first = int(dataset.sizes[:shard].sum())
    bits: list[np.ndarray] = [np.empty(0)] * len(captions)
    for rows in token_batches(encoder.lengths(captions), batch_tokens):
        for row, tokens_LD in zip(rows, _encode(encoder, [captions[row] for row in rows]), strict=True):
            bits[row] = _checked_bits(tokens_LD, text, f"sample {dataset.key(first + row)!r}")
        done(len(rows))
    write_sidecar(dataset.tar_path(shard), text, captions, bits, unconditional)


def token_batches(lengths: list[int], batch_tokens: int) -> list[list[int]]:
    """Indices of captions in batches that have at most `batch_tokens` tokens, padding included (or one caption).

    The longest come first: little is spent on padding, and memory that is too small is noticed at once.
    """
    batches: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        if batches and (len(batches[-1]) + 1) * lengths[batches[-1][0]] <= batch_tokens:
            batches[-1].append(index)
        else:
            batches.append([index])
    return batches


def _encode(encoder: Encoder, captions: list[str]) -> list[Tensor]:
    try:
        return encoder.encode(captions)
    except torch.OutOfMemoryError:
        longest = max(encoder.lengths(captions))
        raise UserError(
            f"{encoder.config.encoder} runs out of memory on {len(captions)} captions of up to {longest} tokens; "
            "encode with a smaller --batch-tokens"
        ) from None


def _checked_bits(tokens_LD: Tensor, text: TextLike, what: str) -> np.ndarray:
    if tokens_LD.shape[-1] != text.width:
        raise UserError(f"{text.encoder} gives {tokens_LD.shape[-1]} numbers a token, text.width is {text.width}")
    # In bf16, which is what is stored: a finite float32 near its maximum rounds to infinity.
    if not torch.isfinite(tokens_LD.to(torch.bfloat16)).all():
        raise UserError(f"{text.encoder} gives NaN or infinity for {what}; encode with another precision (float32)")
    return to_bf16_bits(tokens_LD)
