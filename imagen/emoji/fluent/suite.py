"""Choose the held-out prompts of Fluent Emoji, and the drawings with which samples of them are compared."""

from dataclasses import replace
from itertools import chain

import numpy as np
from PIL import Image

from imagen.emoji.fluent import captions
from imagen.emoji.fluent.background import Background
from imagen.emoji.fluent.dataset import scenes
from imagen.emoji.fluent.heldout import heldout_colour, is_heldout_person
from imagen.emoji.fluent.scene import Scene
from imagen.emoji.fluent.selection import Selection
from imagen.emoji.picture import hashed
from imagen.emoji.prompts import HeldoutPrompt
from imagen.emoji.recogniser import SIDE, Recogniser
from imagen.emoji.suite import KINDS, SINGLE, Suite


def fluent_suite(recogniser: Recogniser, selected: Selection, n: int) -> Suite:
    """Return at most `n` held-out prompts of each kind, and features of twice as many held-out drawings of one object.

    single: a thing on the background colour that is held out for it
    people: a held-out combination of role, gender and skin tone
    relation: a held-out pair of things
    count: several copies of a thing, in the number that is held out for it
    """
    chosen = heldout_scenes(selected, n, "evaluation")
    others = heldout_scenes(selected, 2 * n, "drawings", variants=2)
    return Suite(
        prompts={kind: [prompt(scene) for scene in chosen[kind]] for kind in KINDS},
        drawings_ND=_features(recogniser, [*chain.from_iterable(others[kind] for kind in SINGLE)]),
        originals={kind: _features(recogniser, chosen[kind]) for kind in SINGLE},
    )


def heldout_scenes(selected: Selection, n: int, seed: str, variants: int = 1) -> dict[str, list[Scene]]:
    """Return at most `n` held-out scenes of each kind, with drawings in their usual size."""
    heldout = scenes(
        selected.things(),
        [each for each in selected.people() if is_heldout_person(each)],
        selected.source.icons,
        variants=variants,
        people_variants=variants,
        relations=0.3,
        counts=0.3,
        seed=hashed(seed) % 2**32,
        heldout=True,
    )
    found: dict[str, list[Scene]] = {kind: [] for kind in KINDS}
    for scene in heldout:
        drawing = scene.placed[0].drawing
        if scene.relation is not None:
            kind = "relation"
        elif len(scene.placed) > 1:
            kind = "count"
        elif drawing.role is None:
            kind = "single"
        elif scene.background.colour != heldout_colour(drawing):
            kind = "people"
        else:
            continue
        if len(found[kind]) < n and scene.size == "":
            found[kind].append(scene)
    return found


def prompt(scene: Scene) -> HeldoutPrompt:
    """Return the plain caption of a scene on a plain background, with the properties that its image must have."""
    background, first = Background(colour=scene.background.colour), scene.placed[0].drawing
    if scene.relation is not None:
        last = scene.placed[-1].drawing
        text = captions.pair(first, last, scene.relation, background)
        return HeldoutPrompt(
            text, background.colour, first.combination, relation=scene.relation, other=last.combination
        )
    if (number := len(scene.placed)) > 1:
        text = captions.group(first, number, background)
        return HeldoutPrompt(text, background.colour, first.combination, number=number)
    return HeldoutPrompt(captions.single(first, background), background.colour, first.combination)


def _features(recogniser: Recogniser, drawn: list[Scene]) -> np.ndarray:
    """Return the features of scenes on plain backgrounds, as in the prompts."""
    if not drawn:
        return np.empty((0, 4 * recogniser.width), np.float32)
    plain = [replace(scene, background=Background(colour=scene.background.colour)) for scene in drawn]
    return recogniser.embed([Image.fromarray(scene.pixels(SIDE)) for scene in plain])
