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
from imagen.emoji.fluent.suite import heldout_scenes
from imagen.emoji.picture import PALETTE
from imagen.emoji.recogniser import Detection, Recogniser, packaged_recogniser


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
    scenes = heldout_scenes(Selection(source=source), 1000, "recogniser")
    found = accuracy(ConstantRecogniser(["astronaut/woman/dark"], 16), scenes)
    assert found["single"]["object"] == found["relation"]["object"] == found["count"]["number"] == 0
    people = found["people"]
    assert 0 < people["object"] < people["role"] < 1 and people["object"] < people["gender"] < 1
    assert people["object"] < people["tone"] < 0.5


def test_packaged_recogniser_is_that_of_the_vocabulary() -> None:
    assert packaged_recogniser().name == packaged_recogniser({"octopus", "horse"}).name == "recogniser-openmoji"
