"""Say which words of a prompt a cascade was never trained on, and which names it knows are nearest in meaning."""

import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from imagen.errors import quoted

if TYPE_CHECKING:
    from torch import Tensor

SHOWN = 3  # phrases in a warning, and names for each
MOST_NAMES = 1_000  # above this none is given as nearest: a prompt encoder takes 8 ms or more per name
_LONGEST = 200  # characters of a name
_WORD = re.compile(r"[^\W\d_]+(?:['-][^\W\d_]+)*|\d+")
_CLAUSE = re.compile(r"[,.;:!?()\[\]\n、。，；：！？]")
_SPELLINGS = str.maketrans({"’": "'", "‐": "-"})
_ENDINGS = (("", "s"), ("", "es"), ("y", "ies"), ("f", "ves"), ("fe", "ves"))  # singular, plural
# Words without a meaning of their own that could be drawn: a prompt may use them whether captions did or not.
_FUNCTION_WORDS = frozenset(
    _WORD.findall(
        "a an the this that these those some any each every one and or but with without of in on at by to from for "
        "into onto over under near next beside between behind above below up down out off as is are was were be "
        "being been it its his her their my your our who which there here very"
    )
)

Encode = Callable[[Sequence[str]], "Sequence[Tensor]"]  # texts -> embeddings [L, D] of each


@dataclass(frozen=True)
class Vocabulary:
    """Hold what the captions of training named: all of their words, lower case, and the names of objects."""

    words: frozenset[str]
    names: tuple[str, ...] = ()

    @classmethod
    def from_json(cls, value: Any) -> "Vocabulary | None":
        """Return the vocabulary that `to_json` gave; None for anything else."""
        if not isinstance(value, dict) or not all(
            isinstance(part := value.get(key), list) and all(isinstance(each, str) for each in part)
            for key in ("words", "names")
        ):
            return None
        if not all(name.isprintable() and len(name) <= _LONGEST for name in value["names"]):  # they are shown
            return None
        return cls(frozenset(value["words"]), tuple(value["names"]))

    def to_json(self) -> dict[str, list[str]]:
        return {"words": sorted(self.words), "names": list(self.names)}

    def __or__(self, other: "Vocabulary") -> "Vocabulary":
        return Vocabulary(self.words | other.words, tuple(sorted({*self.names, *other.names})))

    def unknown(self, prompt: str) -> list[str]:
        """Return the parts of `prompt` that no caption of training contained; adjacent words are one part."""
        parts: list[list[str]] = []
        for clause in _CLAUSE.split(prompt):
            parts.append([])
            for word in _without_hyphens(split_words(clause)):
                if word in _FUNCTION_WORDS or self._knows(word):
                    parts.append([])
                else:
                    parts[-1].append(word)
        return list(dict.fromkeys(" ".join(part) for part in parts if part))

    @cached_property
    def _known(self) -> frozenset[str]:
        """The words, divided at hyphens: captions and prompts differ in "ice cream" and "ice-cream"."""
        return frozenset(_without_hyphens(split_words(" ".join(self.words))))

    def _knows(self, word: str) -> bool:
        """Return whether captions contained `word`, in the singular or plural."""
        forms = {word}
        for singular, plural in _ENDINGS:
            if word.endswith(singular):
                forms.add(word.removesuffix(singular) + plural)
            if word.endswith(plural):
                forms.add(word.removesuffix(plural) + singular)
        return not forms.isdisjoint(self._known)


def split_words(text: str) -> list[str]:
    """Return the words of a text in lower case, without "'s", and its numbers."""
    words = _WORD.findall(unicodedata.normalize("NFKC", text).lower().translate(_SPELLINGS))
    return [word.removesuffix("'s") for word in words]


def _without_hyphens(words: Iterable[str]) -> list[str]:
    return [part for word in words for part in word.split("-")]


def caption_words(captions: Iterable[str]) -> frozenset[str]:
    return frozenset(word for caption in captions for word in split_words(caption))


class NearestNames:
    """Find the names that are nearest in meaning to a phrase: none, if there are more than `MOST_NAMES`.

    The names are encoded once, for the first phrase.
    """

    def __init__(self, names: Iterable[str], encode: Encode):
        distinct = list(dict.fromkeys(names))
        self.names = distinct if len(distinct) <= MOST_NAMES else []
        self._encode = encode
        self._names_ND: Tensor | None = None

    def __call__(self, phrase: str, count: int = SHOWN) -> list[str]:
        """Return the `count` names nearest to `phrase`, by the cosine of mean embeddings; never `phrase` itself."""
        if not self.names:
            return []
        import torch  # here, because processes that render images read this module

        names_ND = self.encode_names()
        cosines_N = torch.nn.functional.cosine_similarity(self._means([phrase]), names_ND)
        order = cosines_N.topk(min(count + 1, len(self.names))).indices.tolist()
        return [name for i in order if (name := self.names[i]) != phrase][:count]

    def encode_names(self) -> "Tensor":
        """Return the mean embeddings of the names, [N, D], computed in the first call."""
        if self._names_ND is None:
            self._names_ND = self._means(self.names)
        return self._names_ND

    def _means(self, texts: list[str]) -> "Tensor":
        import torch

        return torch.stack([each.float().mean(0) for each in self._encode(texts)])


def untrained_words(prompts: Iterable[str], vocabulary: Vocabulary, encode: Encode) -> str | None:
    """Return a warning of words in `prompts` unknown to training, with the nearest names; None if there are none."""
    phrases = [part for prompt in dict.fromkeys(prompts) for part in vocabulary.unknown(prompt)]
    return warning_of(phrases, NearestNames(vocabulary.names, encode))


def warning_of(phrases: Iterable[str], nearest: Callable[[str], Sequence[str]]) -> str | None:
    """Return a warning that phrases were not in training, with the `nearest` names of the first; None without any."""
    phrases = list(dict.fromkeys(phrases))
    if not phrases:
        return None
    shown = []
    for phrase in phrases[:SHOWN]:
        close = nearest(phrase)
        shown.append(quoted(phrase) + (f" (nearest of the names it knows: {', '.join(close)})" if close else ""))
    more = f" and {len(phrases) - SHOWN:,} more" if len(phrases) > SHOWN else ""
    return f"never trained on {', '.join(shown)}{more}; the images will probably show something else"
