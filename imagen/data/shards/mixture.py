"""Several data sets as one: `--data A=0.7 --data B=0.3`."""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
from torch import Tensor

from imagen.data.embed.sidecar import Embeddings
from imagen.data.shards.dataset import ShardedDataset, check_shards
from imagen.errors import UserError


@dataclass(frozen=True)
class Portion:
    """One data set of a mixture: a folder or URL, and its weight (None: its number of samples)."""

    location: str | Path
    weight: Fraction | None = None

    def __str__(self) -> str:
        return str(self.location) if self.weight is None else f"{self.location}={float(self.weight):g}"


Data = str | Path | Sequence[str | Path | Portion | tuple[str | Path, float]]


def parse_portion(text: str) -> Portion:
    """Parse `SHARDS` or `SHARDS=WEIGHT`; an existing path is never split. Raises UserError for an invalid weight."""
    location, equals, weight = text.rpartition("=")
    if not equals or Path(text).exists():
        return Portion(Path(text))
    try:
        return Portion(Path(location), _weight(float(weight), text))
    except ValueError:
        raise UserError(
            f"--data {text}: {weight!r} is not a weight; give SHARDS or SHARDS=NUMBER, as in a=0.7"
        ) from None


def _weight(value: float, where: str) -> Fraction:
    if not (math.isfinite(value) and value > 0):
        raise UserError(f"{where}: the weight is {value:g}; it must be above 0")
    return Fraction(repr(float(value)))  # 0.7 is 7/10, not the nearest binary fraction


def portions_of(data: Data) -> tuple[Portion, ...]:
    """Return the portions of `data`, in order: a path, or a list of paths and (path, weight).

    Raises UserError unless all of several portions have a weight, or none.
    """
    if isinstance(data, str | Path):
        return (Portion(data),)
    portions = []
    for one in data:
        if isinstance(one, tuple):
            portions.append(Portion(one[0], _weight(one[1], str(one[0]))))
        else:
            portions.append(one if isinstance(one, Portion) else Portion(one))
    if not portions:
        raise UserError("no data: give a folder or URL of shards")
    names = [str(portion.location) for portion in portions]
    if repeated := next((name for number, name in enumerate(names) if name in names[:number]), None):
        raise UserError(f"{repeated} is given twice; give it once, with the sum of the weights")
    if len({portion.weight is None for portion in portions}) > 1:
        without = next(portion for portion in portions if portion.weight is None)
        raise UserError(f"{without} has no weight, but others have; give weights to all (SHARDS=0.5), or to none")
    return tuple(portions)


def check_data(data: Data) -> None:
    """Raise UserError unless each local folder of `data` exists and contains shards. Opens no file."""
    for portion in portions_of(data):
        check_shards(portion.location)


class MixedDataset:
    """The samples of several data sets, one after the other, in the interface of `ShardedDataset`.

    shares: of each part in training, with a sum of 1.
    """

    def __init__(self, parts: Sequence[ShardedDataset], weights: Sequence[Fraction | None]):
        self.parts = list(parts)
        exact = [Fraction(len(part)) if weight is None else weight for part, weight in zip(parts, weights, strict=True)]
        self.shares = [weight / sum(exact) for weight in exact]
        self._ends = np.cumsum([len(part) for part in parts])
        self._first_shards = np.cumsum([0, *(len(part.shards) for part in parts)]).tolist()
        self.sizes = np.concatenate([part.sizes for part in parts])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def find(self, i: int) -> tuple[int, int]:
        """Return sample `i` as (part, sample of the part). Raises IndexError."""
        if not 0 <= i < len(self):
            raise IndexError(f"sample {i} of {len(self)}")
        part = int(np.searchsorted(self._ends, i, side="right"))
        return part, int(i - self._ends[part] + len(self.parts[part]))

    def fingerprint(self) -> str:
        """Return a hash of the parts' fingerprints; that of a single part is its own."""
        found = [part.fingerprint() for part in self.parts]
        return found[0] if len(found) == 1 else hashlib.sha256(",".join(found).encode()).hexdigest()[:16]

    def check_cache(self, count: int) -> None:
        """Raise UserError if the shard cache of a URL is smaller than `count` tars of each part."""
        for part in self.parts:
            part.check_cache(count * len(self.parts))

    @property
    def has_image_sizes(self) -> bool:
        return all(part.has_image_sizes for part in self.parts)

    def image_sizes(self) -> np.ndarray:
        return np.concatenate([part.image_sizes() for part in self.parts])

    def locate(self, i: int) -> tuple[int, int]:
        part, sample = self.find(i)
        shard, row = self.parts[part].locate(sample)
        return self._first_shards[part] + shard, row

    def tar_path(self, shard: int) -> Path:
        part = int(np.searchsorted(self._first_shards, shard, side="right")) - 1
        return self.parts[part].tar_path(shard - self._first_shards[part])

    def key(self, i: int) -> str:
        part, sample = self.find(i)
        return self.parts[part].key(sample)

    def extensions(self, i: int) -> list[str]:
        part, sample = self.find(i)
        return self.parts[part].extensions(sample)

    def image_size(self, i: int) -> tuple[int, int] | None:
        part, sample = self.find(i)
        return self.parts[part].image_size(sample)

    def read(self, i: int, extension: str) -> bytes:
        part, sample = self.find(i)
        return self.parts[part].read(sample, extension)

    def captions(self, i: int) -> list[str]:
        part, sample = self.find(i)
        return self.parts[part].captions(sample)


class MixedEmbeddings:
    """The text embeddings of a mixture, in the interface of `Embeddings`."""

    def __init__(self, dataset: MixedDataset, parts: Sequence[Embeddings]):
        self.dataset, self.parts = dataset, list(parts)

    def tokens(self, i: int, caption: str, number: int = 0) -> Tensor:
        part, sample = self.dataset.find(i)
        return self.parts[part].tokens(sample, caption, number)

    def unconditional(self) -> Tensor:
        return self.parts[0].unconditional()


AnyDataset = ShardedDataset | MixedDataset
AnyEmbeddings = Embeddings | MixedEmbeddings
