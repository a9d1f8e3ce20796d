"""Read and write the sidecar of text embeddings beside a shard: `00000.<encoder>.<max_tokens>.text.safetensors`.

Tokens are stored as bfloat16 bits in uint16, without padding: a caption of 20 tokens with embedding dimension 4096
takes 160 KiB, compared with 2 MiB when padded to 128 tokens in float32. The header names the encoder, its revision, the
token limit and the embedding dimension. Each caption's hash is stored with its embedding. Embeddings of another encoder
or of another caption therefore cannot reach training unnoticed.
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
_FORMAT_SEVERAL = "imagen-text-2"  # has the tensor `first_caption`: some samples have several captions


def slug(encoder: str) -> str:
    """Turn an encoder's name or folder into part of a file name."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", encoder).strip("-.")


def sidecar_path(tar: Path, text: TextConfig) -> Path:
    """Return the path for an encoder, revision and token limit: `00000.google-t5-v1_1-xxl.128.text.safetensors`.

    A revision other than main is part of the name: `00000.google-t5-v1_1-xxl@3db67ab.128.text.safetensors`.
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
    """Return a 64-bit hash of a caption that is the same on every machine (unlike `hash`)."""
    return int.from_bytes(hashlib.blake2b(caption.encode(), digest_size=8).digest(), "little")


def _hashes(captions: list[list[str]]) -> np.ndarray:
    return np.array([caption_hash(caption) for sample_captions in captions for caption in sample_captions], np.uint64)


def _first_captions(captions: list[list[str]]) -> np.ndarray:
    """Return the offset of each sample's captions in the list of all captions, int64 [N + 1]."""
    return np.cumsum([0, *map(len, captions)], dtype=np.int64)


def first_captions(sidecar: MappedTensors) -> np.ndarray:
    """Return the offset of each sample's captions in a sidecar, int64 [N + 1]."""
    if sidecar.metadata.get("format") == _FORMAT_SEVERAL:
        return sidecar["first_caption"]
    return np.arange(len(sidecar["caption_hash"]) + 1)  # one caption per sample


def to_bf16_bits(x: Tensor) -> np.ndarray:
    return x.to(torch.bfloat16).contiguous().view(torch.int16).numpy().view(np.uint16)


def from_bf16_bits(bits: np.ndarray) -> Tensor:
    """Convert bfloat16 bits to float32: bfloat16 is the upper 16 bits of a float32."""
    return torch.from_numpy((bits.astype(np.uint32) << 16).view(np.float32))


@dataclass(frozen=True)
class Truncation:
    """The number of captions above the token limit, and of the tokens that they lose."""

    captions: int = 0  # longer than the limit
    tokens: int = 0  # beyond the limit, in total
    most: int = 0  # beyond the limit, for one caption at most

    def __add__(self, other: "Truncation") -> "Truncation":
        return Truncation(self.captions + other.captions, self.tokens + other.tokens, max(self.most, other.most))

    @staticmethod
    def at(limit: int, lengths: Iterable[int]) -> "Truncation":
        """Return the truncation of captions with these untruncated lengths at `limit` tokens."""
        excess = [length - limit for length in lengths if length > limit]
        return Truncation(len(excess), sum(excess), max(excess, default=0))


def read_truncation(sidecar: MappedTensors) -> Truncation | None:
    """Return the truncation recorded in a sidecar's header; None if the header does not have it."""
    try:
        return Truncation(*(int(sidecar.metadata[f"cut_{field.name}"]) for field in fields(Truncation)))
    except (KeyError, ValueError):
        return None


def write_sidecar(
    tar: Path,
    text: TextConfig,
    captions: list[list[str]],
    bits: list[np.ndarray],
    unconditional: np.ndarray,
    truncation: Truncation | None = None,
) -> None:
    """Write the sidecar of one shard, atomically.

    captions: the captions of each sample. bits: one uint16 array [L, D] per caption, in order. unconditional: uint16
    [L0, D], or [0, D] without one. truncation: None if it is unknown.
    """
    hashes = _hashes(captions)
    arrays = {
        "tokens": np.concatenate([np.empty((0, text.width), np.uint16), *bits]),  # a shard may have no samples left
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
        **({} if truncation is None else {f"cut_{name}": str(value) for name, value in asdict(truncation).items()}),
    }
    with replacing(sidecar_path(tar, text)) as temporary:
        save_tensors(arrays, temporary, metadata)


class Embeddings:
    """Read the text embeddings of all shards of a data set.

    Opening checks every shard's header against `text`. Raises UserError if a sidecar is missing, truncated or made by
    another encoder or revision or with another token limit or embedding dimension. Safe to fork and to pickle.
    """

    def __init__(self, dataset: ShardedDataset, text: TextConfig):
        self.dataset, self.text = dataset, text
        revision = "" if text.revision == "main" else f" --revision {text.revision}"
        self._command = (
            f"run `imagen data encode {dataset.root} --encoder {text.encoder}{revision} --max-tokens {text.max_tokens}`"
        )
        dataset.fetch(sidecar_path(dataset.tar_path(s), text).name for s in range(len(dataset.shards)))
        self.sidecars = [self._open(shard) for shard in range(len(dataset.shards))]

    def _open(self, shard: int) -> MappedTensors:
        tar = self.dataset.tar_path(shard)
        path = sidecar_path(tar, self.text)
        if not path.exists():
            # Names only: files of an earlier version, which lack the token limit in their names, are listed too.
            names = sorted(name for name in self.dataset.beside(shard) if name.endswith(".text.safetensors"))
            only = f", only {', '.join(names)}" if names else ""
            raise UserError(
                f"{tar} has no text embeddings of {self.text.encoder!r} ({path.name}){only}; {self._command}"
            )
        sidecar = MappedTensors(path, self._command)
        if (stored := sidecar.metadata.get("format")) not in (_FORMAT, _FORMAT_SEVERAL):
            raise UserError(
                f"{path} has the format {stored!r}, which this version of imagen does not read; {self._command}"
            )
        for name, wanted in _identity(self.text).items():
            if sidecar.metadata.get(name) != wanted:
                stored = sidecar.metadata.get(name)
                raise UserError(
                    f"{path} was made with {name} {stored!r}, but the run needs {wanted!r}; {self._command}"
                )
        return sidecar

    def tokens(self, i: int, caption: str, number: int = 0) -> Tensor:
        """Return the embedding, float32 [L, D], of caption `number` of sample `i`.

        Raises UserError if the caption that was encoded differs from `caption`.
        """
        shard, sample = self.dataset.locate(i)
        sidecar = self.sidecars[shard]
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
        """Return the unconditional embedding, [L0, D] float32. Raises UserError if the sidecars lack it."""
        return unconditional_embedding(self.text, self._empty)

    def _empty(self) -> Tensor:
        stored = self.sidecars[0]["unconditional"]
        if len(stored) == 0:  # the embeddings come from the source of the data
            raise UserError(f'{self.sidecars[0].path} has no embedding of ""; use --text.unconditional zeros')
        return from_bf16_bits(stored)


def matches_sidecar(dataset: ShardedDataset, shard: int, text: TextConfig) -> bool:
    """Return whether a shard's sidecar is complete and was made with `text` from the shard's present captions."""
    try:
        sidecar = MappedTensors(sidecar_path(dataset.tar_path(shard), text), remedy="")
        made_by = all(sidecar.metadata.get(name) == value for name, value in _identity(text).items())
        if not made_by or sidecar.metadata.get("format") not in (_FORMAT, _FORMAT_SEVERAL):
            return False
        captions = dataset.shard_captions(shard)
        return np.array_equal(first_captions(sidecar), _first_captions(captions)) and np.array_equal(
            sidecar["caption_hash"], _hashes(captions)
        )
    except UserError:  # missing or truncated
        return False


def count_truncated(folder: str | Path, text: TextConfig) -> tuple[Truncation, int]:
    """Return the truncation of the captions of all splits that were encoded with `text`, and the number of captions.

    Sidecars that do not record their truncation count as untruncated. Raises UserError for a sidecar that is missing or
    truncated.
    """
    truncation, captions = Truncation(), 0
    for split in splits(folder):
        dataset = open_split(folder, split)
        for shard in range(len(dataset.shards)):
            sidecar = MappedTensors(sidecar_path(dataset.tar_path(shard), text), "run `imagen data encode` again")
            truncation += read_truncation(sidecar) or Truncation()
            captions += len(sidecar["caption_hash"])
    return truncation, captions
