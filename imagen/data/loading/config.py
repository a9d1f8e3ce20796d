"""Options of loading training data."""

from dataclasses import dataclass
from pathlib import Path

from imagen import limits
from imagen.data.shards.remote import CacheConfig, default_folder


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    # Aspect-ratio buckets: "auto", or sizes as "64x64,80x48" (width x height); None: the centre square of each image.
    buckets: str | None = None
    bucket_batch: int | None = None  # consecutive samples in one bucket, a divisor of the batch; None: the whole batch
    crop: int | None = None  # side of a random high-resolution crop (SR training); None: the whole image
    flip: bool = False  # random horizontal flip of images whose caption mentions neither left nor right
    full_decode: bool = False  # decode JPEGs at full size, several times slower: closer to Pillow's bicubic
    on_the_fly: bool = False  # encode captions while training, instead of reading sidecars
    workers: int = 2  # loader processes per rank; 0: load in the training process
    window: int = 4  # shards that are shuffled together
    max_enlargement: float = 1.0  # images that would have to be upsampled by more are not used
    max_bad: float = 0.1  # tolerated fraction of bad samples
    cache: str | None = None  # folder of the shard cache for URLs; None: ~/.cache/imagen/shards
    cache_gb: float = 50.0  # its maximum size for tars, in 10^9 bytes

    @property
    def shard_cache(self) -> CacheConfig:
        folder = default_folder() if self.cache is None else Path(self.cache).expanduser()
        return CacheConfig(folder=folder, gb=self.cache_gb)

    def check(self) -> None:
        """Raise UserError, naming the field, for a value out of range."""
        limits.check(self, limits.DATA, "data.")
