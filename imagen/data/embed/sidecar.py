"""The sidecar of text embeddings beside a shard: `00000.<encoder>.<max_tokens>.text.safetensors`.

Tokens are bfloat16 stored as uint16, trimmed of padding: a caption of 20 tokens at 4096
numbers takes 160 KiB, against 2 MiB padded to 128 in fp32. The header names the encoder, its
revision, the token limit and the width; each caption's hash is stored with its embedding, so
that neither another encoder's numbers nor another caption's can reach training unnoticed.
"""

import hashlib
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from imagen.data.shards.dataset import ShardedDataset, open_split, splits
from imagen.data.shards.mapped import MappedTensors
from imagen.errors import UserError
from imagen.files import replacing
from imagen.tensors import save_tensors
from imagen.text.config import TextConfig
from imagen.text.embeddings import unconditional_embedding

_FORMAT = "imagen-text-1"
_FORMAT_SEVERAL = "imagen-text-2"  # with `first_caption`: some samples have several captions


def slug(encoder: str) -> str:
    """An encoder's name, or folder, as part of a file name."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", encoder).strip("-.")


def sidecar_path(tar: Path, text: TextConfig) -> Path:
    """One for each encoder, revision and token limit: `00000.google-t5-v1_1-xxl.128.text.safetensors`.

    A revision that is not main is in it too: `00000.google-t5-v1_1-xxl@3db67ab.128.text.safetensors`.
    """
    revision = "" if text.revision == "main" else f"@{slug(text.revision)}"
    name = f"{slug(text.encoder)}{revision}.{text.max_tokens}"
    return tar.with_name(f"{tar.name.removesuffix('.tar')}.{name}.text.safetensors")


def _identity(text: TextConfig) -> dict[str, str]:
    return {
        "encoder": text.encoder,
        "revision": text.revision,
        "max_tokens": str(text.max_tokens),
        "width": str(text.width),
    }


def caption_hash(caption: str) -> int:
    """64 bits that tell captions apart, the same on every machine (unlike `hash`)."""
    return int.from_bytes(hashlib.blake2b(caption.encode(), digest_size=8).digest(), "little")


def _hashes(captions: list[list[str]]) -> np.ndarray:
    return np.array([caption_hash(caption) for those in captions for caption in those], np.uint64)


def _first_captions(captions: list[list[str]]) -> np.ndarray:
    """Where the captions of each sample begin among those of all, int64 [N + 1]."""
    return np.cumsum([0, *map(len, captions)], dtype=np.int64)


def first_captions(sidecar: MappedTensors) -> np.ndarray:
    """Where the captions of each sample begin in a sidecar, int64 [N + 1]."""
    if sidecar.metadata.get("format") == _FORMAT_SEVERAL:
        return sidecar["first_caption"]
    return np.arange(len(sidecar["caption_hash"]) + 1)  # one each


def to_bf16_bits(x: Tensor) -> np.ndarray:
    return x.to(torch.bfloat16).contiguous().view(torch.int16).numpy().view(np.uint16)


def from_bf16_bits(bits: np.ndarray) -> Tensor:
    """float32 of bfloat16 bit patterns: bfloat16 is the upper half of a float32."""
    return torch.from_numpy((bits.astype(np.uint32) << 16).view(np.float32))


@dataclass(frozen=True)
class Cut:
    """How much of some captions lies behind the token limit, where no encoder reads it."""

    captions: int = 0  # that are longer than the limit
    tokens: int = 0  # behind it, of all of them
    most: int = 0  # behind it, of one of them

    def __add__(self, other: "Cut") -> "Cut":
        return Cut(self.captions + other.captions, self.tokens + other.tokens, max(self.most, other.most))

    @staticmethod
    def at(limit: int, lengths: Iterable[int]) -> "Cut":
        """Of captions with these lengths before they were cut."""
        behind = [length - limit for length in lengths if length > limit]
        return Cut(len(behind), sum(behind), max(behind, default=0))


def cut_of(sidecar: MappedTensors) -> Cut | None:
    """What was cut when a sidecar was made; None if its header does not say."""
    try:
        return Cut(*(int(sidecar.metadata[f"cut_{field.name}"]) for field in fields(Cut)))
    except (KeyError, ValueError):
        return None


def write_sidecar(
    tar: Path,
    text: TextConfig,
    captions: list[list[str]],
    bits: list[np.ndarray],
    unconditional: np.ndarray,
    cut: Cut | None = None,
) -> None:
    """Write the sidecar of one shard, atomically.

    `captions` holds those of each sample, `bits` one uint16 array [L, D] for each of all captions, in order. `cut` is
    what they lost at the token limit; None: nobody knows.
    """
    hashes = _hashes(captions)
    arrays = {
        "tokens": np.concatenate([np.empty((0, text.width), np.uint16), *bits]),  # a shard may have no sample left
        "offsets": np.cumsum([0, *map(len, bits)], dtype=np.int64),
        "unconditional": unconditional,
        "caption_hash": hashes,
    }
    several = len(hashes) > len(captions)
    if several:
        arrays["first_caption"] = _first_captions(captions)
    metadata = {
        "format": _FORMAT_SEVERAL if several else _FORMAT,
        **_identity(text),
        "captions": hashlib.blake2b(hashes.tobytes(), digest_size=16).hexdigest(),
        **({} if cut is None else {f"cut_{name}": str(value) for name, value in asdict(cut).items()}),
    }
    with replacing(sidecar_path(tar, text)) as temporary:
        save_tensors(arrays, temporary, metadata)


class Embeddings:
    """The embeddings of all shards of a data set, read by slices of memory maps.

    Opening checks every shard's header against `text`: UserError if a sidecar is missing, cut off
    or made by another encoder, revision, token limit or width. Safe to fork and to pickle.
    """

    def __init__(self, dataset: ShardedDataset, text: TextConfig):
        self.dataset, self.text = dataset, text
        revision = "" if text.revision == "main" else f" --revision {text.revision}"
        self._command = (
            f"run `imagen data encode {dataset.root} --encoder {text.encoder}{revision} --max-tokens {text.max_tokens}`"
        )
        dataset.bring(sidecar_path(dataset.tar_path(s), text).name for s in range(len(dataset.shards)))
        self._sidecars = [self._open(shard) for shard in range(len(dataset.shards))]

    def _open(self, shard: int) -> MappedTensors:
        tar = self.dataset.tar_path(shard)
        path = sidecar_path(tar, self.text)
        if not path.exists():
            # By their names: a file of an earlier version, without the token limit in its name, is shown as such.
            names = sorted(name for name in self.dataset.beside(shard) if name.endswith(".text.safetensors"))
            only = f", only {', '.join(names)}" if names else ""
            raise UserError(
                f"{tar} has no text embeddings of {self.text.encoder!r} ({path.name}){only}; {self._command}"
            )
        sidecar = MappedTensors(path, self._command)
        if (stored := sidecar.metadata.get("format")) not in (_FORMAT, _FORMAT_SEVERAL):
            raise UserError(f"{path} has the format {stored!r}, not one of this version; {self._command}")
        for name, wanted in _identity(self.text).items():
            if sidecar.metadata.get(name) != wanted:
                stored = sidecar.metadata.get(name)
                raise UserError(f"{path} was made with {name} {stored!r}, the run wants {wanted!r}; {self._command}")
        return sidecar

    def tokens(self, i: int, caption: str, number: int = 0) -> Tensor:
        """The embedding [L, D] float32 of sample `i` and its caption `number`, checked against what was encoded."""
        shard, sample = self.dataset.locate(i)
        sidecar = self._sidecars[shard]
        row = sample + number
        if sidecar.metadata["format"] == _FORMAT_SEVERAL:
            first_caption = sidecar["first_caption"]
            row = int(first_caption[sample]) + number if sample < len(first_caption) else -1
        if not 0 <= row < len(sidecar["caption_hash"]) or int(sidecar["caption_hash"][row]) != caption_hash(caption):
            raise UserError(
                f"{sidecar.path} does not belong to its shard: sample {self.dataset.key(i)!r} "
                f"had another caption when it was encoded; {self._command}"
            )
        first, last = sidecar["offsets"][row : row + 2].tolist()
        return from_bf16_bits(sidecar.rows("tokens", first, last))

    def unconditional(self) -> Tensor:
        """Return the unconditional embedding, [L0, D] float32. UserError if the sidecars lack it."""
        return unconditional_embedding(self.text, self._empty)

    def _empty(self) -> Tensor:
        stored = self._sidecars[0]["unconditional"]
        if len(stored) == 0:  # embeddings that came with their source
            raise UserError(f'{self._sidecars[0].path} has no embedding of ""; use --text.unconditional zeros')
        return from_bf16_bits(stored)


def matches_sidecar(dataset: ShardedDataset, shard: int, text: TextConfig) -> bool:
    """Whether a shard's sidecar is whole and made by `text` from exactly the captions that the shard holds now."""
    try:
        sidecar = MappedTensors(sidecar_path(dataset.tar_path(shard), text), remedy="")
        made_by = all(sidecar.metadata.get(name) == value for name, value in _identity(text).items())
        if not made_by or sidecar.metadata.get("format") not in (_FORMAT, _FORMAT_SEVERAL):
            return False
        captions = dataset.shard_captions(shard)
        return np.array_equal(first_captions(sidecar), _first_captions(captions)) and np.array_equal(
            sidecar["caption_hash"], _hashes(captions)
        )
    except UserError:  # missing or cut off
        return False


def captions_cut(folder: str | Path, text: TextConfig) -> tuple[Cut, int]:
    """What the token limit has cut off the captions of all splits, and how many captions there are.

    Of shards that were encoded by `text`; one that does not say what it lost counts as whole.
    Raises UserError for a sidecar that is missing or cut off.
    """
    cut, captions = Cut(), 0
    for split in splits(folder):
        dataset = open_split(folder, split)
        for shard in range(len(dataset.shards)):
            sidecar = MappedTensors(sidecar_path(dataset.tar_path(shard), text), "run `imagen data encode` again")
            cut += cut_of(sidecar) or Cut()
            captions += len(sidecar["caption_hash"])
    return cut, captions
