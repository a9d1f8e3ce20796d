"""Test the held-out prompts of Fluent Emoji, and the accuracies with a fake recogniser that knows the scenes."""

from typing import Any

import pytest
from PIL import Image

from imagen.emoji.fluent.catalogue import Source
from imagen.emoji.fluent.evaluation import prompt, scores, suite
from imagen.emoji.fluent.heldout import heldout_colour, heldout_number, is_heldout_pair, is_heldout_person
from imagen.emoji.fluent.scene import Scene
from imagen.emoji.fluent.selection import Selection
from imagen.emoji.recogniser import Detection, Recogniser

Scenes = dict[str, list[Scene]]


@pytest.fixture
def suite_scenes(source: Source) -> Scenes:
    return suite(Selection(source=source), 12)


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

    def __init__(self, suite_scenes: Scenes):
        self.queue = [scene for chosen in suite_scenes.values() for scene in chosen]
        self.sampled: dict[bytes, Scene] = {}

    def sample(self, prompts: list[str], **_: Any) -> list[Image.Image]:
        scenes, self.queue = self.queue[: len(prompts)], self.queue[len(prompts) :]
        images = [Image.fromarray(scene.pixels(32)) for scene in scenes]
        upsampled = [image.resize((64, 64), Image.Resampling.BICUBIC) for image in images]
        self.sampled |= {image.tobytes(): scene for image, scene in zip(upsampled, scenes, strict=True)}
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


def test_scores(suite_scenes: Scenes) -> None:
    cascade = FakeCascade(suite_scenes)
    found, images = scores(cascade, FakeRecogniser(cascade), suite_scenes)  # type: ignore[arg-type]
    assert found["single"]["object"] == found["count"]["number"] == found["relation"]["relation"] == 1.0
    dark = [scene.placed[0].drawing.tone == "dark" for scene in suite_scenes["people"]]
    assert found["people"]["tone"] == found["people"]["object"] == sum(dark) / len(dark) < 1
    assert found["people"]["role"] == found["people"]["gender"] == 1.0
    assert images["single"][0].size == (64, 64)
    assert found["kid"] < 0.05
