"""Test the held-out prompts of Fluent Emoji, and their evaluation with a fake recogniser that knows the scenes."""

from dataclasses import replace
from itertools import chain
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("resvg_py")

from imagen.emoji.evaluation import scores
from imagen.emoji.fluent.background import Background
from imagen.emoji.fluent.catalogue import Source
from imagen.emoji.fluent.heldout import heldout_colour, heldout_number, is_heldout_pair, is_heldout_person
from imagen.emoji.fluent.scene import Scene
from imagen.emoji.fluent.selection import Selection
from imagen.emoji.fluent.suite import fluent_suite, heldout_scenes, prompt
from imagen.emoji.recogniser import Detection, Recogniser
from imagen.emoji.suite import load_suite
from imagen.errors import UserError
from imagen.files import read_json, write_json

Scenes = dict[str, list[Scene]]


@pytest.fixture
def suite_scenes(source: Source) -> Scenes:
    return heldout_scenes(Selection(source=source), 12, "evaluation")


def test_prompts_are_held_out_combinations(suite_scenes: Scenes) -> None:
    assert {kind for kind, chosen in suite_scenes.items() if chosen} == {"single", "people", "relation", "count"}
    for scene in suite_scenes["single"]:
        (placed,) = scene.placed
        colour = scene.background.colour
        text = f"{placed.drawing.article}{placed.drawing.name} on {'an' if colour == 'orange' else 'a'}"
        assert prompt(scene).prompt == f"{text} {colour} background"
        assert colour == heldout_colour(placed.drawing)
    for scene in suite_scenes["people"]:
        drawing = scene.placed[0].drawing
        assert is_heldout_person(drawing) and prompt(scene).object == drawing.combination
        assert drawing.tone is None or f" with {drawing.tone} skin on " in prompt(scene).prompt
    for scene in suite_scenes["relation"]:
        assert is_heldout_pair(scene.placed[0].drawing, scene.placed[1].drawing)
        assert prompt(scene).relation == scene.relation
    for scene in suite_scenes["count"]:
        assert prompt(scene).number == len(scene.placed) == heldout_number(scene.placed[0].drawing)


class FakeCascade:
    """Returns the original drawings of the scenes, in their order."""

    stages = (
        SimpleNamespace(
            info={"step": 1, "images": 64}, config=SimpleNamespace(sampling=SimpleNamespace(guidance=2.0, steps=20))
        ),
    )

    def __init__(self, suite_scenes: Scenes):
        self.queue = [scene for chosen in suite_scenes.values() for scene in chosen]
        self.sampled: dict[bytes, Scene] = {}

    def request(self, *_: Any, **__: Any) -> None:
        pass

    def sample(self, prompts: list[str], **_: Any) -> list[Image.Image]:
        scenes, self.queue = self.queue[: len(prompts)], self.queue[len(prompts) :]
        assert prompts == [prompt(scene).prompt for scene in scenes]
        plain = [replace(scene, background=Background(colour=scene.background.colour)) for scene in scenes]
        images = [Image.fromarray(scene.pixels(64)) for scene in plain]
        self.sampled |= {image.tobytes(): scene for image, scene in zip(images, scenes, strict=True)}
        return images


class FakeRecogniser(Recogniser):
    """Detects what the scene contains, except that the tone of every person is "dark"."""

    def __init__(self, cascade: FakeCascade):
        super().__init__(["thing"], 16)
        self.cascade = cascade

    def detect(self, images: Any, batch_size: int = 64) -> list[list[Detection]]:
        found = []
        for image in images:
            scene = self.cascade.sampled[image.tobytes()]
            drawings = [placed.drawing for placed in scene.placed]
            dark = [each if each.role is None else each._replace(tone="dark") for each in drawings]
            centres = [(placed.x, placed.y) for placed in scene.placed]
            found.append([Detection(each.combination, 1.0, *xy) for each, xy in zip(dark, centres, strict=True)])
        return found


def test_scores(source: Source, suite_scenes: Scenes) -> None:
    torch.manual_seed(0)  # the recogniser's features are those of random weights
    cascade = FakeCascade(suite_scenes)
    recogniser = FakeRecogniser(cascade)
    suite = fluent_suite(recogniser, Selection(source=source), 12)
    (row,) = scores(cascade, recogniser, suite)  # type: ignore[arg-type]
    assert row["prompts"] == {kind: len(chosen) for kind, chosen in suite_scenes.items()}
    assert row["single"]["object"] == row["count"]["number"] == row["relation"]["relation"] == 1.0
    dark = [scene.placed[0].drawing.tone == "dark" for scene in suite_scenes["people"]]
    assert row["people"]["tone"] == row["people"]["object"] == row["people"]["all"] == sum(dark) / len(dark) < 1
    assert row["people"]["role"] == row["people"]["gender"] == 1.0
    assert row["kid"] == row["kid_floor"]  # the samples are the original drawings
    noise = {kind: np.random.default_rng(0).normal(size=(12, 64)).astype(np.float32) for kind in ("single", "people")}
    assert suite.distances(noise)[0] > 10 * abs(row["kid"]) and suite.distances(noise)[1] == row["kid"]


def test_saved_suite(source: Source, suite_scenes: Scenes, tmp_path: Path) -> None:
    suite = fluent_suite(Recogniser(["thing"], 16), Selection(source=source), 12)
    assert load_suite(tmp_path) is None
    suite.save(tmp_path)
    loaded = load_suite(tmp_path)
    assert loaded is not None and loaded.prompts == suite.prompts
    np.testing.assert_allclose(loaded.drawings_ND, suite.drawings_ND, rtol=1e-3, atol=1e-3)
    few = loaded.first(2)
    assert [len(each) for each in chain(few.prompts.values(), few.originals.values())] == [2] * 6
    (tmp_path / "drawings.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match="damaged prompts"):
        load_suite(tmp_path)
    suite.save(tmp_path)
    good = read_json(tmp_path / "prompts.json")
    number = [{**good["single"][0], "number": "2"}, *good["single"][1:]]
    for damaged in (
        {"single": [{"text": 1}]},
        {**good, "single": number},
        {**good, "step": []},
        {**good, "people": good["people"][1:]},
        [],
    ):
        write_json(tmp_path / "prompts.json", damaged)
        with pytest.raises(UserError, match="damaged prompts"):
            load_suite(tmp_path)
