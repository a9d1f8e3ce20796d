"""Test the training data and the evaluation of the recogniser of Fluent Emoji."""

import math
import random
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("resvg_py")

from imagen.emoji.colour import background_colour
from imagen.emoji.evaluation import choose_suite
from imagen.emoji.fluent.catalogue import Source
from imagen.emoji.fluent.recogniser import accuracy, background, drawings
from imagen.emoji.fluent.selection import Selection
from imagen.emoji.fluent.sprites import cropped_sprite
from imagen.emoji.fluent.suite import fluent_suite, heldout_scenes
from imagen.emoji.picture import PALETTE
from imagen.emoji.recogniser import Detection, Recogniser, load_recogniser, packaged_recogniser
from imagen.emoji.recogniser_training import save_recogniser
from imagen.errors import UserError
from imagen.files import read_json, write_json


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


def test_packaged_recogniser_has_the_largest_share_of_known_names(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("imagen.emoji.recogniser.packaged_path", lambda name: tmp_path / name)
    save_recogniser(Recogniser(["horse", "octopus"], 16), tmp_path / "recogniser-openmoji")
    assert packaged_recogniser().name == packaged_recogniser({"rocket"}).name == "recogniser-openmoji"
    save_recogniser(Recogniser(["horse", "octopus", "astronaut/woman/dark"], 16), tmp_path / "recogniser-fluent")
    assert packaged_recogniser({"horse", "octopus", "bus", "car"}).name == "recogniser-openmoji"
    assert packaged_recogniser({"horse", "astronaut"}).name == "recogniser-fluent"


def test_damaged_recognisers_are_errors(tmp_path) -> None:
    network = Recogniser(["horse"], 16)
    for change in ({"width": 20}, {"width": 10**6}, {"names": [1]}, {"names": []}):
        save_recogniser(network, tmp_path)
        config = read_json(tmp_path / "recogniser.json")
        write_json(tmp_path / "recogniser.json", {**config, **change})
        with pytest.raises(UserError, match="damaged recogniser"):
            load_recogniser.__wrapped__(tmp_path)
    with torch.no_grad():
        network.centre.bias.fill_(math.nan)
    save_recogniser(network, tmp_path)
    with pytest.raises(UserError, match="not finite"):
        load_recogniser.__wrapped__(tmp_path)


def test_a_recogniser_must_know_the_prompts(source: Source, tmp_path) -> None:
    suite = fluent_suite(Recogniser(["horse"], 16), Selection(source=source), 4)
    suite.save(tmp_path)
    with pytest.raises(UserError, match="does not know"):
        choose_suite(Recogniser(["horse"], 16), tmp_path, 4)
    known = [each.combination for each in drawings(Selection(source=source))]
    assert choose_suite(Recogniser(known, 16), tmp_path, 4).prompts == suite.prompts
    with pytest.raises(UserError, match="features of another recogniser"):
        choose_suite(Recogniser(known, 32), tmp_path, 4)
