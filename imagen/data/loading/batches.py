"""A batch of samples as tensors."""

from dataclasses import dataclass, fields, replace
from typing import Any

from torch import Tensor


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
        """Return the number of bad samples that were replaced."""
        return len(self.problems)

    def __len__(self) -> int:
        return len(self.keys)

    def pin_memory(self) -> "Batch":
        return self._map(Tensor.pin_memory)

    def _map(self, function: Any) -> "Batch":
        tensors = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(self, **{name: function(x) for name, x in tensors.items() if isinstance(x, Tensor)})
