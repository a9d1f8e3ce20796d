"""Text encoders that need no files, for tests."""

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
        """One token a word, each a hash of the word: different captions have different lengths and numbers."""
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
    config = TextConfig(encoder="toy", width=8)

    def lengths(self, captions):
        return [1 + len(caption) // 2 for caption in captions]

    def untruncated_lengths(self, captions):
        return self.lengths(captions)

    def encode(self, captions):
        generators = [torch.Generator().manual_seed(sum(map(ord, caption))) for caption in captions]
        return [torch.randn(1 + len(c) // 2, 8, generator=g) for c, g in zip(captions, generators, strict=True)]
