"""Turn positions of the stream into tensors: order, decoding, crop, flip, caption, embedding."""

from itertools import islice
from pathlib import Path

import numpy as np
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from imagen.data.embed.sidecar import Embeddings
from imagen.data.loading.batches import Batch
from imagen.data.loading.buckets import Size
from imagen.data.loading.config import DataConfig
from imagen.data.loading.order import random_bits
from imagen.data.loading.stream_order import StreamOrder
from imagen.data.loading.transforms import aligned_crop, decode, fit, mentions_left_or_right, shorter_side
from imagen.data.shards.captions import choose as choose_caption
from imagen.data.shards.dataset import open_split
from imagen.data.shards.images import BadSample, choose_image
from imagen.data.shards.mixture import AnyDataset, AnyEmbeddings
from imagen.errors import UserError
from imagen.text.config import TextConfig
from imagen.text.embeddings import pad_embeddings

_TRIES = 100  # bad samples in a row before the stream gives up

Images = tuple[Tensor, Tensor | None]  # uint8 [C, H, W], and [C, h, w] at low resolution
Caption = tuple[int, str]  # which of a sample's captions, and its text


class Stream(Dataset):
    """A data set of batches, indexed by lists of positions.

    A UserError is returned, not raised, because torch would wrap it in a worker's traceback.
    """

    def __init__(self, reader: "SampleReader", seed: int, order: StreamOrder):
        self.reader, self.seed, self.order = reader, seed, order

    def __getitems__(self, positions: list[int]) -> Batch | UserError:
        try:
            problems: list[str] = []
            loaded = [self._load(position, problems) for position in positions]
            indices, captions, images = zip(*loaded, strict=True)
            return self.reader.batch(positions[0], list(indices), list(captions), list(images), problems)
        except UserError as error:
            return error

    def _load(self, position: int, problems: list[str]) -> tuple[int, Caption, Images]:
        """Load the sample at `position`, a pure function; a bad sample is replaced by the next one of its bucket."""
        dataset, config = self.reader.dataset, self.reader.config
        size = self.order.size(position)
        for i in islice(self.order.candidates(position), _TRIES):
            try:
                high, low = self.reader.images(i, size)
            except BadSample as error:
                problems.append(f"{dataset.key(i)} in {dataset.tar_path(dataset.locate(i)[0])}: {error}")
                continue
            flip, top, left = (random_bits(self.seed, 1, position, 0, 3) >> np.uint64(11)) / 2**53  # in [0, 1)
            if config.crop is not None:
                high, low = aligned_crop(high, low, config.crop, (top, left))
            captions = dataset.captions(i)
            number = choose_caption(self.seed, position, len(captions))
            if config.flip and flip < 0.5 and not mentions_left_or_right(captions[number]):
                high, low = high.flip(-1), None if low is None else low.flip(-1)
            return i, (number, captions[number]), (high, low)
        raise UserError(f"{_TRIES} bad samples in a row, the last one {problems[-1]}; check the data")


class SampleReader:
    """A reader of samples by index, as tensors of a given size, by default the square of `resolution`."""

    def __init__(
        self,
        dataset: AnyDataset,
        config: DataConfig,
        resolution: int,
        low_resolution: int | None,
        embeddings: AnyEmbeddings | None,
        channels: int = 3,
    ):
        """Check the sizes. Raises UserError if `resolution`, `low_resolution` and `config.crop` do not fit."""
        self.dataset, self.config, self.channels = dataset, config, channels
        self.resolution, self.low_resolution = resolution, low_resolution
        self.embeddings = embeddings
        scale = 1
        if low_resolution is not None:
            scale, rest = divmod(resolution, low_resolution)
            if rest or scale < 1:
                raise UserError(f"resolution {resolution} is not a multiple of low_resolution {low_resolution}")
        if config.crop is not None and (config.crop % scale or not 0 < config.crop <= resolution):
            raise UserError(f"data.crop {config.crop} must be a multiple of {scale} and at most {resolution}")

    def images(self, i: int, size: Size | None = None) -> Images:
        """Return the image of sample `i` at both resolutions, uncropped. Raises BadSample if it cannot be used.

        size: height and width at the stage's resolution; None: the square.
        """
        size = size or (self.resolution, self.resolution)
        is_square = size == (self.resolution, self.resolution)
        side = self.resolution if is_square else shorter_side(size, self.dataset.image_size(i))
        extensions = self.dataset.extensions(i)
        high = self._image(i, choose_image(extensions, side), size, side)
        if self.low_resolution is None:
            return high, None
        scale = self.resolution // self.low_resolution
        low_size = size[0] // scale, size[1] // scale
        master = f"{self.low_resolution}.png"  # a master of this size is better than a downsampled image
        if is_square and master in extensions:
            return high, self._image(i, master, low_size, self.low_resolution)
        return high, self.resize(high, low_size)

    def _image(self, i: int, extension: str, size: Size, side: int) -> Tensor:
        return self.resize(self.decode(self.read(i, extension), side), size)

    # The steps of an image, each of which `imagen.data.loading.bench` times.

    def read(self, i: int, extension: str) -> bytes:
        return self.dataset.read(i, extension)

    def decode(self, data: bytes, side: int) -> Tensor:
        """Decode an image that will be resized to a shorter side of about `side` pixels."""
        # Twice the side: most of the speed of DCT scaling, while the antialiased resize still determines the quality.
        return decode(data, min_side=0 if self.config.full_decode else 2 * side, channels=self.channels)

    def resize(self, image_CHW: Tensor, size: Size) -> Tensor:
        return fit(image_CHW, size, self.config.max_enlargement)

    def stack(self, images: list[Tensor]) -> Tensor:
        # In a worker this writes to shared memory directly; stacking first would make a second copy.
        return default_collate(images).contiguous()

    def batch(
        self, position: int, indices: list[int], captions: list[Caption], images: list[Images], problems: list[str]
    ) -> Batch:
        """Collate samples. captions: for each sample the one that was chosen."""
        text = mask = None
        if self.embeddings is not None:
            tokens = (self.embeddings.tokens(i, caption, n) for i, (n, caption) in zip(indices, captions, strict=True))
            text, mask = pad_embeddings(list(tokens))
        return Batch(
            position=position,
            keys=[self.dataset.key(i) for i in indices],
            captions=[caption for _, caption in captions],
            image=self.stack([high for high, _ in images]),
            low_res=self.stack([low for _, low in images if low is not None]) if self.low_resolution else None,
            text=text,
            text_mask=mask,
            problems=tuple(problems),
        )


def dataset_batch(
    folder: str | Path,
    indices: list[int],
    *,
    resolution: int,
    low_resolution: int | None = None,
    text: TextConfig | None = None,
    channels: int = 3,
    split: str = "train",
) -> Batch:
    """Return the given samples as one Batch, uncropped, unflipped and with their first captions.

    Raises UserError for a bad sample.
    """
    dataset = open_split(folder, split)
    embeddings = None if text is None else Embeddings(dataset, text)
    reader = SampleReader(dataset, DataConfig(), resolution, low_resolution, embeddings, channels)
    images = []
    for i in indices:
        try:
            images.append(reader.images(i))
        except BadSample as error:
            raise UserError(f"{dataset.key(i)} in {dataset.tar_path(dataset.locate(i)[0])}: {error}") from None
    return reader.batch(-1, list(indices), [(0, dataset.caption(i)) for i in indices], images, [])
