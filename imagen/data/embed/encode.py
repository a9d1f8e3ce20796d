"""Compute the text embeddings of all captions of a data set once, and store them beside the shards."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from time import sleep

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from imagen.data.build.engines import Engine
from imagen.data.build.leases import Leases
from imagen.data.embed.sidecar import Truncation, matches_sidecar, sidecar_path, to_bf16_bits, write_sidecar
from imagen.data.shards.dataset import ShardedDataset, index_folder, open_split, splits
from imagen.data.shards.index import index_path
from imagen.errors import UserError
from imagen.progress import progress_bar
from imagen.text.config import TextConfig
from imagen.text.protocol import DatasetEncoder

BATCH_TOKENS = 8192
POLL_INTERVAL = 1.0  # seconds between checks of shards that other processes encode
_Shard = tuple[ShardedDataset, int]


def encode_shards(
    folder: str | Path,
    encoder: DatasetEncoder,
    batch_tokens: int = BATCH_TOKENS,
    progress: bool = True,
    leases: Leases | None = None,
    engine: Engine | None = None,
) -> int:
    """Write the missing or outdated sidecars of all shards of `folder` (all splits); return how many were written.

    Also writes missing indexes, so this is the only step between img2dataset's output and training. May be killed and
    run again at any time. Any number of processes and machines may run it at once: one process leases each shard, and
    all return when every shard is encoded. The returned number counts only this process's shards.

    engine: its workers encode instead, each with a copy of `encoder`, which must be picklable.

    Raises UserError naming the sample whose embedding is not finite, and for damaged shards.
    """
    index_folder(folder, sizes=True)
    datasets = [open_split(folder, split) for split in splits(folder)]
    pending = [(dataset, shard) for dataset in datasets for shard in range(len(dataset.shards))]
    total = sum(int(dataset.sizes.sum()) for dataset in datasets)
    with progress_bar(total=total, unit=" samples", desc="encode", disable=not progress, delay=1) as bar:
        if engine is not None:
            return _encode_by(engine, pending, encoder, batch_tokens, bar)
        return _encode_here(pending, encoder, batch_tokens, leases or Leases(), bar)


def _encode_here(pending: list[_Shard], encoder: DatasetEncoder, batch_tokens: int, leases: Leases, bar: tqdm) -> int:
    encoded = 0
    while pending:
        elsewhere = []  # shards leased by other processes
        for dataset, shard in pending:
            mine = _encode_leased(dataset, shard, encoder, batch_tokens, leases, bar)
            if mine is None:
                elsewhere.append((dataset, shard))
            encoded += mine is True
        if elsewhere and len(elsewhere) == len(pending):
            bar.set_description(f"encode: waiting for {len(elsewhere)} shards of other processes")
            sleep(POLL_INTERVAL)
        pending = elsewhere
    return encoded


def _encode_leased(
    dataset: ShardedDataset,
    shard: int,
    encoder: DatasetEncoder,
    batch_tokens: int,
    leases: Leases,
    bar: tqdm | None = None,
) -> bool | None:
    """Encode a shard. Return True if this call did it, False if it already was, None if another process leases it."""
    done = bar.update if bar is not None else lambda samples: None
    sidecar = sidecar_path(dataset.tar_path(shard), encoder.config)
    if matches_sidecar(dataset, shard, encoder.config):
        leases.remove_abandoned(sidecar)
        done(int(dataset.sizes[shard]))
        return False
    with leases.acquire(sidecar) as mine:
        if not mine:
            return None
        if matches_sidecar(dataset, shard, encoder.config):  # finished after the first check
            done(int(dataset.sizes[shard]))
            return False
        if bar is not None:
            bar.set_description("encode", refresh=False)
        encode_shard(dataset, shard, encoder, batch_tokens, done)
        return True


def _encode_by(engine: Engine, shards: list[_Shard], encoder: DatasetEncoder, batch_tokens: int, bar: tqdm) -> int:
    missing = [(dataset, shard) for dataset, shard in shards if not matches_sidecar(dataset, shard, encoder.config)]
    bar.update(bar.total - sum(int(dataset.sizes[shard]) for dataset, shard in missing))
    if not missing:
        return 0
    encoded = 0
    probe_file = index_path(missing[0][0].tar_path(missing[0][1]))
    for i, mine in engine.map(partial(_Shards, missing, encoder, batch_tokens), range(len(missing)), probe_file):
        dataset, shard = missing[i]
        bar.update(int(dataset.sizes[shard]))
        encoded += mine
    return encoded


class _Shards:
    """Encode shards by number in a worker of an engine.

    Workers lease shards as other processes do: several commands may run at once, and acquiring a lease removes the
    temporary files of a killed worker.
    """

    def __init__(self, shards: list[_Shard], encoder: DatasetEncoder, batch_tokens: int):
        self.shards, self.encoder, self.batch_tokens = shards, encoder, batch_tokens
        self.leases = Leases()

    def __call__(self, number: int) -> bool:
        while True:
            mine = _encode_leased(*self.shards[number], self.encoder, self.batch_tokens, self.leases)
            if mine is not None:
                return mine
            sleep(POLL_INTERVAL)


def encode_shard(
    dataset: ShardedDataset,
    shard: int,
    encoder: DatasetEncoder,
    batch_tokens: int = BATCH_TOKENS,
    done: Callable[[int], object] = lambda samples: None,
) -> None:
    """Write the sidecar of one shard, which depends only on its captions, the encoder and `batch_tokens`.

    done: called after each batch with the number of samples whose first caption it contained.

    Raises UserError as `encode_shards` does.
    """
    lists, text = dataset.shard_captions(shard), encoder.config
    captions = [caption for sample_captions in lists for caption in sample_captions]
    sample = [i for i, sample_captions in enumerate(lists) for _ in sample_captions]
    if captions and not any(captions):  # before the encoder is loaded, which may take minutes
        raise UserError(f"{dataset.tar_path(shard)} has no captions (KEY.txt members); nothing to encode")
    unconditional = _checked_bits(encoder.encode([""])[0], text, "the empty caption")
    first = int(dataset.sizes[:shard].sum())
    bits: list[np.ndarray] = [np.empty(0)] * len(captions)
    lengths = encoder.lengths(captions)
    at_limit = [caption for caption, length in zip(captions, lengths, strict=True) if length >= text.max_tokens]
    # Shorter captions cannot have been truncated.
    truncation = Truncation.at(text.max_tokens, encoder.untruncated_lengths(at_limit))
    for rows in token_batches(lengths, batch_tokens):
        for row, tokens_LD in zip(rows, _encode(encoder, [captions[row] for row in rows]), strict=True):
            bits[row] = _checked_bits(tokens_LD, text, f"sample {dataset.key(first + sample[row])!r}")
        done(sum(row == 0 or sample[row] != sample[row - 1] for row in rows))
    write_sidecar(dataset.tar_path(shard), text, lists, bits, unconditional, truncation)


def token_batches(lengths: list[int], batch_tokens: int) -> list[list[int]]:
    """Group indices of captions into batches of at most `batch_tokens` tokens, padding included (or one caption).

    Captions are sorted by length, longest first. This minimises padding, and a lack of memory shows at the first batch.
    """
    batches: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        if batches and (len(batches[-1]) + 1) * lengths[batches[-1][0]] <= batch_tokens:
            batches[-1].append(index)
        else:
            batches.append([index])
    return batches


def _encode(encoder: DatasetEncoder, captions: list[str]) -> list[Tensor]:
    try:
        return encoder.encode(captions)
    except torch.OutOfMemoryError:
        longest = max(encoder.lengths(captions))
        raise UserError(
            f"{encoder.config.encoder} runs out of memory on {len(captions)} captions of up to {longest} tokens; "
            "encode with a smaller --batch-tokens"
        ) from None


def _checked_bits(tokens_LD: Tensor, text: TextConfig, what: str) -> np.ndarray:
    if tokens_LD.shape[-1] != text.width:
        raise UserError(
            f"{text.encoder} gives embeddings of {tokens_LD.shape[-1]} dimensions, but text.width is {text.width}"
        )
    # Checked in bfloat16, the stored type: a finite float32 near its maximum rounds to infinity.
    if not torch.isfinite(tokens_LD.to(torch.bfloat16)).all():
        raise UserError(f"{text.encoder} gives NaN or infinity for {what}; encode with --device cpu, in float32")
    return to_bf16_bits(tokens_LD)
