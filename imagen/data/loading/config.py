"""How training data are read."""

from dataclasses import dataclass
from pathlib import Path

from imagen import limits
from imagen.data.shards.remote import Cache, default_folder


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    crop: int | None = None  # side of a random high-resolution crop (SR training); None: the whole picture
    flip: bool = False  # random horizontal flip of pictures whose caption names neither left nor right
    full_decode: bool = False  # decode JPEGs at their full size, several times slower: nearer to Pillow's bicubic
    on_the_fly: bool = False  # encode captions while training, instead of reading their embeddings beside the shards
    workers: int = 2  # loader processes a rank; 0: load in the training process
    window: int = 4  # shards that are shuffled together
    max_enlargement: float = 1.0  # a picture that would have to be enlarged by more is a bad sample
    max_bad: float = 0.1  # bad samples tolerated, as a fraction of those seen
    cache: str | None = None  # folder for copies of shards that are read from a URL; None: ~/.cache/imagen/shards
    cache_gb: float = 50.0  # its bound for tars, in 10^9 bytes

    @property
    def shard_cache(self) -> Cache:
        folder = default_folder() if self.cache is None else Path(self.cache).expanduser()
        return Cache(folder=folder, gb=self.cache_gb)

    def check(self) -> None:
        """UserError, naming the field, unless every value is in its range."""
        limits.check(self, limits.DATA, "data.")
