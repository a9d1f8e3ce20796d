"""Test the training data and the evaluation of the recogniser of Fluent Emoji."""

import random
from collections import Counter
from typing import Any

import numpy as np

from imagen.emoji.colour import background_colour
from imagen.emoji.fluent.catalogue import Source
from imagen.emoji.fluent.recogniser import accuracy, background, drawings
from imagen.emoji.fluent.selection import Selection
from imagen.emoji.fluent.sprites import cropped_sprite
from imagen.emoji.picture import PALETTE
from imagen.emoji.recogniser import Detection, Recogniser


def test_one_drawing_per_name_and_combination(source: Source) -> None:
    names = [each.combination for each in drawings(Selection(source=source))]
    assert len(names) == len(set(names)) == 7 + 3 * 18
    assert {"octopus", "astronaut/woman/dark", "wearing turban/person/yellow"} <= set(names)


def test_cropped_sprite_fills_its_square(source: Source) -> None:
    alpha = np.asarray(cropped_sprite(source.icons, "octopus", 60))[..., 3]
    assert (alpha[28:32] > 200)[:, 3:-3].all() and not alpha[:8, :8].any()  # a disc
    assert alpha[1:3, 30].max() > 100


def test_backgrounds_are_near_the_palette() -> None:
    rng = random.Random(0)
    seen = Counter(background_colour(np.asarray(background(rng))) for _ in range(300))
    assert seen.keys() == PALETTE.keys() and min(seen.values()) > 8


class ConstantRecogniser(Recogniser):
    """Always detects its first name."""

    def detect(self, images: Any, batch_size: int = 64) -> list[list[Detection]]:
        return [[Detection(self.names[0], 1.0, 0.5, 0.5)] for _ in images]


def test_accuracy(source: Source) -> None:
    known = drawings(Selection(source=source))
    found = accuracy(ConstantRecogniser(["astronaut/woman/dark"], 16), source.icons, known, 1000)
    assert found["things"] == found["pair"] == found["number"] == 0
    assert 0 < found["people"] < found["role"] < 1 and found["people"] < found["gender"] < 1
    assert found["people"] < found["tone"] < 0.5
