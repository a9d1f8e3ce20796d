"""Held-out prompts by kind, and features of the drawings with which samples are compared."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from imagen.emoji.prompts import HeldoutPrompt
from imagen.errors import UserError
from imagen.evaluate.files import write_arrays
from imagen.evaluate.metrics.kernel import kid
from imagen.files import read_json, write_json

PROMPTS, FEATURES = "prompts.json", "drawings.safetensors"
KINDS = ("single", "people", "relation", "count")
SINGLE = ("single", "people")  # the kinds of prompts for one object


@dataclass(frozen=True, kw_only=True)
class Suite:
    """Held-out prompts, and features of original drawings (`Recogniser.embed`)."""

    prompts: Mapping[str, list[HeldoutPrompt]]  # by kind
    drawings_ND: np.ndarray  # held-out drawings of one object
    originals: Mapping[str, np.ndarray]  # kind in SINGLE -> a drawing of each prompt, in order

    def distances(self, features: Mapping[str, np.ndarray]) -> tuple[float, float]:
        """Return the kernel distances of samples and of original drawings of their prompts from `drawings_ND`.

        Each feature is scaled by its standard deviation among the drawings. features: kind in SINGLE -> features of
        the samples, for at most as many prompts as the suite has.
        """
        mean, std = self.drawings_ND.mean(axis=0), self.drawings_ND.std(axis=0)
        std = np.maximum(std, 0.01 * np.median(std) + 1e-6)  # a feature that is constant here may vary in samples
        originals = [self.originals[kind][: len(sampled)] for kind, sampled in features.items()]
        real = (self.drawings_ND - mean) / std
        return (
            kid((np.concatenate([*features.values()]) - mean) / std, real),
            kid((np.concatenate(originals) - mean) / std, real),
        )

    def first(self, n: int) -> "Suite":
        """Return the suite of the first `n` prompts of each kind."""
        return Suite(
            prompts={kind: chosen[:n] for kind, chosen in self.prompts.items()},
            drawings_ND=self.drawings_ND,
            originals={kind: features[:n] for kind, features in self.originals.items()},
        )

    def save(self, folder: Path) -> None:
        """Write the suite beside the recogniser in `folder`."""
        arrays = {"drawings": self.drawings_ND, **self.originals}
        write_arrays(folder / FEATURES, {name: value.astype(np.float16) for name, value in arrays.items()})
        write_json(
            folder / PROMPTS, {kind: [each._asdict() for each in chosen] for kind, chosen in self.prompts.items()}
        )


def load_suite(folder: Path) -> Suite | None:
    """Return the suite that was saved beside a recogniser; None if there is none. Raises UserError if it is damaged."""
    if not (folder / PROMPTS).is_file():
        return None
    try:
        prompts = {kind: [_prompt(each) for each in chosen] for kind, chosen in read_json(folder / PROMPTS).items()}
        arrays = {name: value.astype(np.float32) for name, value in load_file(folder / FEATURES).items()}
        suite = Suite(
            prompts=prompts,
            drawings_ND=arrays["drawings"],
            originals={kind: arrays[kind] for kind in SINGLE if kind in prompts},
        )
        _check(suite)
    except (AttributeError, KeyError, TypeError, ValueError, OSError, SafetensorError) as error:
        raise UserError(f"{folder} has damaged prompts ({PROMPTS}, {FEATURES}): {error}") from None
    return suite


def _prompt(value: dict[str, Any]) -> HeldoutPrompt:
    prompt = HeldoutPrompt(**value)
    texts = (prompt.prompt, prompt.colour, prompt.object, prompt.relation or "", prompt.other or "")
    if not all(isinstance(text, str) for text in texts) or not isinstance(prompt.number, int):
        raise ValueError("a prompt has a field of another type")
    return prompt


def _check(suite: Suite) -> None:
    """Raise ValueError unless the prompts are of known kinds, and have features of one width."""
    if unknown := suite.prompts.keys() - set(KINDS):
        raise ValueError(f"unknown kind of prompt: {', '.join(unknown)}")
    arrays = [suite.drawings_ND, *suite.originals.values()]
    if any(array.ndim != 2 or array.shape[1:] != arrays[0].shape[1:] for array in arrays):
        raise ValueError("the features have several widths")
    if any(len(suite.originals[kind]) != len(suite.prompts[kind]) for kind in suite.originals):
        raise ValueError("the features are of other prompts")
    if sum(map(len, suite.originals.values())) < 2 or len(suite.drawings_ND) < 2:
        raise ValueError("the kernel distance needs two prompts for one object, and two drawings, or more")
    if not all(np.isfinite(array).all() for array in arrays):
        raise ValueError("the features are not finite")
