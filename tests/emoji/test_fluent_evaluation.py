"""Held-out prompts of Fluent Emoji, and the shares that a judge who sees everything finds."""

from typing import Any

import pytest
from PIL import Image

from imagen.emoji.fluent.catalogue import Source
from imagen.emoji.fluent.evaluation import prompt, scores, suite
from imagen.emoji.fluent.heldout import heldout_colour, heldout_number, is_heldout_pair, is_heldout_person
from imagen.emoji.fluent.scene import Scene
from imagen.emoji.recogniser import Detection, Recogniser

Asked = dict[str, list[Scene]]


@pytest.fixture
def asked(source: Source) -> Asked:
    return suite(source, 12)


def test_prompts_are_of_what_was_held_out(asked: Asked) -> None:
    assert {kind for kind, chosen in asked.items() if chosen} == {"single", "people", "relation", "count"}
    for scene in asked["single"]:
        (placed,) = scene.placed
        colour = scene.background.colour
        text = f"{placed.drawing.article}{placed.drawing.name} on {'an' if colour == 'orange' else 'a'}"
        assert prompt(scene).prompt == f"{text} {colour} background"
        assert colour == heldout_colour(placed.drawing)
    for scene in asked["people"]:
        drawing = scene.placed[0].drawing
        assert is_heldout_person(drawing) and prompt(scene).object == drawing.combination
        assert drawing.tone is None or f" with {drawing.tone} skin on " in prompt(scene).prompt
    for scene in asked["relation"]:
        assert is_heldout_pair(scene.placed[0].drawing, scene.placed[1].drawing)
        assert prompt(scene).relation == scene.relation
    for scene in asked["count"]:
        assert prompt(scene).number == len(scene.placed) == heldout_number(scene.placed[0].drawing)


class Artist:
    """Draws the real thing, in the scenes' order; every person with the skin of another tone."""

    def __init__(self, asked: Asked):
        self.queue = [scene for chosen in asked.values() for scene in chosen]
        self.drawn: dict[bytes, Scene] = {}

    def sample(self, prompts: list[str], **_: Any) -> list[Image.Image]:
        scenes, self.queue = self.queue[: len(prompts)], self.queue[len(prompts) :]
        pictures = [Image.fromarray(scene.pixels(32)) for scene in scenes]
        enlarged = [picture.resize((64, 64), Image.Resampling.BICUBIC) for picture in pictures]
        self.drawn |= {picture.tobytes(): scene for picture, scene in zip(enlarged, scenes, strict=True)}
        return pictures


class Judge(Recogniser):
    """Sees what was drawn, but takes every skin for a dark one."""

    def __init__(self, artist: Artist):
        super().__init__(["thing"], 16)
        self.artist = artist

    def detect(self, pictures: Any, batch_size: int = 64) -> list[list[Detection]]:
        found = []
        for picture in pictures:
            scene = self.artist.drawn[picture.tobytes()]
            names = [placed.drawing for placed in scene.placed]
            dark = [each.combination if each.role is None else each._replace(tone="dark").combination for each in names]
            places = [(placed.x, placed.y) for placed in scene.placed]
            found.append([Detection(name, 1.0, x, y) for name, (x, y) in zip(dark, places, strict=True)])
        return found


def test_scores(asked: Asked) -> None:
    artist = Artist(asked)
    found, pictures = scores(artist, Judge(artist), asked)  # type: ignore[arg-type]
    assert found["single"]["object"] == found["count"]["number"] == found["relation"]["relation"] == 1.0
    dark = [scene.placed[0].drawing.tone == "dark" for scene in asked["people"]]
    assert found["people"]["tone"] == found["people"]["object"] == sum(dark) / len(dark) < 1
    assert found["people"]["role"] == found["people"]["gender"] == 1.0
    assert pictures["single"][0].size == (64, 64)
    assert found["kid"] < 0.05
