"""Measure how fast a data set loads, and where the time goes: `imagen data bench`."""

import math
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from imagen.data.embed.sidecar import Embeddings
from imagen.data.loading.batches import Batch
from imagen.data.loading.buckets import Size, assign, bucket_sizes, show_size

# Measures the loader's own classes, because copies of them could differ.
from imagen.data.loading.config import DataConfig
from imagen.data.loading.loader import Loader
from imagen.data.loading.stream import SampleReader, Stream
from imagen.data.loading.stream_order import StreamOrder
from imagen.data.shards.dataset import ShardedDataset, open_split
from imagen.data.shards.mapped import MappedTensors
from imagen.text.config import TextConfig

PARTS = ("read", "decode", "resize", "crop and stack", "text")
BATCH = 32


class _TimedReader(SampleReader):
    """The loader's reader, with a timer around each step."""

    seconds: dict[str, float]
    read_bytes: int

    @contextmanager
    def running(self, part: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[part] += time.perf_counter() - start

    def reset(self) -> None:
        self.seconds = dict.fromkeys((*PARTS, "batch"), 0.0)
        self.read_bytes = 0

    def read(self, i: int, extension: str) -> bytes:
        with self.running("read"):
            data = super().read(i, extension)
        self.read_bytes += len(data)
        return data

    def decode(self, data: bytes, side: int) -> Tensor:
        with self.running("decode"):
            return super().decode(data, side)

    def resize(self, image_CHW: Tensor, size: Size) -> Tensor:
        with self.running("resize"):
            return super().resize(image_CHW, size)

    def stack(self, images: list[Tensor]) -> Tensor:
        with self.running("crop and stack"):
            return super().stack(images)

    def batch(self, *parts: Any) -> Batch:
        with self.running("batch"):
            return super().batch(*parts)


def bench(
    shards: Any,
    config: DataConfig,
    *,
    resolution: int = 64,
    low_resolution: int | None = None,
    seconds: float = 10.0,
    unit: int = 8,
) -> dict[str, Any]:
    """Load from `shards` (a folder or URL) for `seconds` in this process, then in `config.workers` others.

    With `config.buckets` images have the shapes of their buckets, and each batch has one shape; heights and widths are
    multiples of `unit`, as a U-Net of that total stride needs them.

    Returns, for one process with one thread: images_per_s, milliseconds per image for each of PARTS, kilobytes read per
    image and skipped, the number of bad samples. For the workers: workers, workers_images_per_s (in total) and
    images_per_s_a_worker; the last two are None without workers. encoder names the encoder of the embeddings that were
    loaded, the first in alphabetical order; None without embeddings. images_per_bucket: by size, as "80x48" (width x
    height); None without buckets. Raises UserError as Loader does, and for invalid buckets.
    """
    dataset = open_split(shards, "train", config.shard_cache)
    text = _first_text(dataset)
    embeddings = None if text is None else Embeddings(dataset, text)
    assignment = None
    if config.buckets is not None:
        sizes = bucket_sizes(config.buckets, resolution, math.lcm(unit, resolution // (low_resolution or resolution)))
        assignment = assign(sizes, dataset.image_sizes(), config.max_enlargement)
    loader = Loader(
        dataset,
        config,
        resolution=resolution,
        low_resolution=low_resolution,
        embeddings=embeddings,
        assignment=assignment,
        batch_size=BATCH,
        seed=0,
    )
    reader = _TimedReader(dataset, config, resolution, low_resolution, embeddings)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in a worker
    try:
        found = _alone(reader, loader.order, seconds)
    finally:
        torch.set_num_threads(threads)
    together = None
    if config.workers:
        together = _together(loader, seconds)
    return {
        "resolution": resolution,
        "low_resolution": low_resolution,
        "crop": config.crop,
        "full_decode": config.full_decode,
        "images_per_bucket": None
        if assignment is None
        else {show_size(size): assignment.count(number) for number, size in enumerate(assignment.sizes)},
        "encoder": None if text is None else text.encoder,
        **found,
        "workers": config.workers,
        "workers_images_per_s": together,
        "images_per_s_a_worker": None if together is None else together / config.workers,
        "cores": os.cpu_count(),
    }


def _first_text(dataset: ShardedDataset) -> TextConfig | None:
    """Return the text config of the first sidecar in alphabetical order; None without one."""
    names = sorted(name for name in dataset.beside(0) if name.endswith(".text.safetensors"))
    if not names:
        return None
    dataset.fetch(names[:1])
    header = MappedTensors(dataset.folder / names[0], "encode again").metadata
    return TextConfig(
        encoder=header["encoder"],
        revision=header["revision"],
        width=int(header["width"]),
        max_tokens=int(header["max_tokens"]),
    )


def _alone(reader: _TimedReader, order: StreamOrder, seconds: float) -> dict[str, Any]:
    stream = Stream(reader, 0, order)
    images = position = skipped = 0
    reader.reset()
    start = time.perf_counter()
    while (elapsed := time.perf_counter() - start) < seconds or not images:
        batch = stream.__getitems__(list(range(position, position + BATCH)))
        if not isinstance(batch, Batch):
            raise batch
        position += BATCH
        if position == BATCH:  # maps, handles and caches are warm now
            reader.reset()
            start = time.perf_counter()
            continue
        images, skipped = images + BATCH, skipped + batch.skipped
    spent = reader.seconds
    # Work outside the timed steps: captions and embeddings in the batch; order, cropping and flipping in the stream.
    spent["text"] = spent["batch"] - spent["crop and stack"]
    spent["crop and stack"] += elapsed - spent["batch"] - spent["read"] - spent["decode"] - spent["resize"]
    return {
        "images": images,
        "skipped": skipped,
        "images_per_s": images / elapsed,
        "kilobytes": reader.read_bytes / images / 1e3,
        "milliseconds": {part: 1e3 * spent[part] / images for part in PARTS},
    }


def _together(loader: Loader, seconds: float) -> float:
    """Return the total images per second of all workers of `loader`, after they have started."""
    batches = iter(loader)
    for _ in range(5 * loader.config.workers):  # each worker prefetches 4 batches
        next(batches)
    images, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds or not images:
        images += len(next(batches))
    return images / (time.perf_counter() - start)
