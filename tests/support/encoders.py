"""Define text encoders that need no files."""

import dataclasses

import torch

from imagen.text.config import TextConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class Text:
    encoder: str = "tests/fake"
    revision: str = "main"
    width: int = 8
    max_tokens: int = 16
    unconditional: str = "zeros"


class WordEncoder:
    def __init__(self, config=Text()):
        self.config = config

    def lengths(self, captions):
        return [len(caption.split()) for caption in captions]

    def untruncated_lengths(self, captions):
        return self.lengths(captions)

    def encode(self, captions):
        """Encode each word as one token that depends on the word alone, after a start token."""
        return [
            torch.stack([
                torch.randn(self.config.width, generator=torch.Generator().manual_seed(sum(word.encode())))
                for word in ["<start>", *caption.split()]
            ])
            for caption in captions
        ]  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class LongText:
    encoder: str = "some/encoder-xl"
    revision: str = "main"
    width: int = 8
    max_tokens: int = 16
    unconditional: str = "zeros"


class LengthEncoder:
    """Encodes a caption of n characters as n + 1 tokens, and records the batches."""

    def __init__(self, **changes):
        self.config = LongText(**changes)
        self.batches: list[list[str]] = []

    def lengths(self, captions):
        return [1 + len(c) for c in captions]

    def untruncated_lengths(self, captions):
        return self.lengths(captions)

    def encode(self, captions):
        self.batches.append(captions)
        return [
            torch.linspace(-3, len(c) + 0.1, (1 + len(c)) * self.config.width).view(-1, self.config.width)
            for c in captions
        ]


class ToyEncoder:
    """Encodes a caption of n characters as 1 + n // 2 random tokens, seeded by the caption."""

    config = TextConfig(encoder="toy", width=8)

    def lengths(self, captions):
        return [1 + len(caption) // 2 for caption in captions]

    def untruncated_lengths(self, captions):
        return self.lengths(captions)

    def encode(self, captions):
        generators = [torch.Generator().manual_seed(sum(map(ord, caption))) for caption in captions]
        return [torch.randn(1 + len(c) // 2, 8, generator=g) for c, g in zip(captions, generators, strict=True)]
