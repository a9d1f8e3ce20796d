"""Samples of shards as tensors."""

from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.utils.data import default_collate

from imagen.data.embed.sidecar import Embeddings
from imagen.data.loading.config import DataConfig
from imagen.data.loading.transforms import choose_image, decode, fit
from imagen.data.shards.dataset import BadSample, ShardedDataset, open_split
from imagen.errors import UserError
from imagen.text.config import TextConfig
from imagen.text.embeddings import pad_embeddings


@dataclass(frozen=True)
class Batch:
    """One rank's part of a global batch."""

    position: int  # global position of its first sample (-1: samples fetched by index)
    keys: list[str]
    captions: list[str]
    image: Tensor  # uint8 [B, C, H, W]; C is 3 (RGB) or 1 (grey)
    low_res: Tensor | None  # uint8 [B, C, h, w], the same region
    text: Tensor | None  # float32 [B, L, D], zero-padded to the longest
    text_mask: Tensor | None  # bool [B, L], True: a token
    problems: tuple[str, ...] = ()  # bad samples that were replaced, and why

    @property
    def skipped(self) -> int:
        """How many bad samples were replaced."""
        return len(self.problems)

    def __len__(self) -> int:
        return len(self.keys)

    def pin_memory(self) -> "Batch":
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        pinned: dict[str, Any] = {name: x.pin_memory() for name, x in values.items() if isinstance(x, Tensor)}
        return replace(self, **pinned)


class Pictures:
    """Samples by index as tensors of the sizes asked for."""

    def __init__(
        self,
        dataset: ShardedDataset,
        config: DataConfig,
        resolution: int,
        low_resolution: int | None,
        text: TextConfig | None,
        channels: int = 3,
    ):
        self.dataset, self.config, self.channels = dataset, config, channels
        self.resolution, self.low_resolution = resolution, low_resolution
        self.embeddings = None if text is None else Embeddings(dataset, text)
        scale = 1
        if low_resolution is not None:
            scale, rest = divmod(resolution, low_resolution)
            if rest or scale < 1:
                raise UserError(f"resolution {resolution} is not a multiple of low_resolution {low_resolution}")
        if config.crop is not None and (config.crop % scale or not 0 < config.crop <= resolution):
            raise UserError(f"data.crop {config.crop} must be a multiple of {scale} and at most {resolution}")

    def pair(self, i: int) -> tuple[Tensor, Tensor | None]:
        """The high- and low-resolution picture of sample `i`, whole; BadSample if it cannot be used."""
        extensions = self.dataset.extensions(i)
        high = self._picture(i, choose_image(extensions, self.resolution), self.resolution)
        if self.low_resolution is None:
            return high, None
        master = f"{self.low_resolution}.png"  # exact, e.g. drawn at that size: better than a reduction
        if master in extensions:
            return high, self._picture(i, master, self.low_resolution)
        return high, self.resize(high, self.low_resolution)

    def _picture(self, i: int, extension: str, side: int) -> Tensor:
        return self.resize(self.decode(self.read(i, extension), side), side)

    # The steps of a picture, each of which `imagen.data.loading.bench` times.

    def read(self, i: int, extension: str) -> bytes:
        return self.dataset.read(i, extension)

    def decode(self, data: bytes, side: int) -> Tensor:
        # Twice the side: most of the speed of DCT scaling, and the antialiased resize still has the last word.
        return decode(data, min_side=0 if self.config.full_decode else 2 * side, channels=self.channels)

    def resize(self, image_CHW: Tensor, side: int) -> Tensor:
        return fit(image_CHW, side, self.config.max_enlargement)

    def stack(self, images: list[Tensor]) -> Tensor:
        # In a worker this fills shared memory at once; of a plain stack it would make a second copy.
        return default_collate(images).contiguous()

    def batch(
        self, position: int, indices: list[int], chosen: list[tuple[int, str]], pairs: list[Any], problems: list[str]
    ) -> Batch:
        """One Batch; `chosen` has of each sample's captions the number and the text of the one it is shown with."""
        text = mask = None
        if self.embeddings is not None:
            tokens = (self.embeddings.tokens(i, caption, n) for i, (n, caption) in zip(indices, chosen, strict=True))
            text, mask = pad_embeddings(list(tokens))
        return Batch(
            position=position,
            keys=[self.dataset.key(i) for i in indices],
            captions=[caption for _, caption in chosen],
            image=self.stack([high for high, _ in pairs]),
            low_res=None if self.low_resolution is None else self.stack([low for _, low in pairs]),
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
    """The given samples as one Batch, uncropped, unflipped and with their first captions: for validation.

    A bad sample is a UserError.
    """
    dataset = open_split(folder, split)
    pictures = Pictures(dataset, DataConfig(), resolution, low_resolution, text, channels)
    pairs = []
    for i in indices:
        try:
            pairs.append(pictures.pair(i))
        except BadSample as error:
            raise UserError(f"{dataset.key(i)} in {dataset.tar_path(dataset.locate(i)[0])}: {error}") from None
    return pictures.batch(-1, list(indices), [(0, dataset.caption(i)) for i in indices], pairs, [])
