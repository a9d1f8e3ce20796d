"""Test scenes of several objects: captions, positions, held-out combinations, and other styles."""

import io
import json
import tarfile
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("resvg_py")
pytest.importorskip("emoji")

from imagen.emoji.dataset import PALETTE, build_emoji, compose, heldout_colour, heldout_counts, heldout_relations
from imagen.emoji.openmoji import Style, emojis
from imagen.emoji.picture import Picture
from imagen.emoji.scene import (
    NUMBERS,
    RELATIONS,
    Scene,
    compose_group,
    compose_pair,
    group_caption,
    groups,
    heldout_number,
    is_countable,
    is_heldout_pair,
    pair_caption,
    pairs,
    plural,
)
from imagen.emoji.single import objects
from imagen.emoji.styles import credit, inner_svg, styled
from imagen.errors import UserError

BY_NAME = {emoji.name: emoji for emoji in emojis()}
HORSE, BUS, PEAR = BY_NAME["horse"], BY_NAME["bus"], BY_NAME["pear"]


def drawn(picture: Picture, size: int = 64) -> np.ndarray:
    """Return a mask, bool [H, W], of the pixels that are not background."""
    pixels = np.asarray(Image.open(io.BytesIO(picture.render(size))))
    return (pixels != np.array(PALETTE[picture.colour])).any(axis=-1)


# --- captions


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        *(("horse", "horses"), ("octopus", "octopuses"), ("ox", "oxen"), ("foot", "feet"), ("bison", "bison")),
        *(("strawberry", "strawberries"), ("yo-yo", "yo-yos"), ("scarf", "scarves"), ("turkey", "turkeys")),
        *(("cup of coffee", "cups of coffee"), ("fire engine", "fire engines"), ("old man", "old men")),
        *(("person rowing a boat", "people rowing a boat"), ("person in bed", "people in bed"), ("mango", "mangos")),
        *(("tomato", "tomatoes"), ("snowman", "snowmen")),
        *(("tropical fish", "tropical fish"), ("bow and arrow", "bows and arrow"), ("man's shoe", "man's shoes")),
    ],
)
def test_plural(name, expected):
    assert plural(BY_NAME[name]) == expected


def test_names_without_plural_are_not_countable():
    assert not any(is_countable(BY_NAME[name]) for name in ("bread", "cherries", "fork and knife", "Statue of Liberty"))
    assert sum(is_countable(emoji) for emoji in objects(96)) > 80


@pytest.mark.parametrize(
    ("wording", "pair", "group"),
    [
        (0.0, "a horse above a bus, on an orange background", "three pears on an orange background"),
        (0.6, "horse above bus, orange background", "three pears, orange background"),
        (0.8, "an orange background with a horse above a bus", "an orange background with three pears"),
        (0.9, "a drawing of a horse above a bus, orange background", "a drawing of three pears, orange background"),
    ],
)
def test_captions(wording, pair, group):
    assert pair_caption(HORSE, BUS, "above", "orange", wording) == pair
    assert group_caption(PEAR, 3, "orange", wording) == group


# --- images


@pytest.mark.parametrize("relation", RELATIONS)
def test_first_object_is_in_the_stated_relation_to_the_second(relation):
    """Measure images of each object alone and of both."""
    to_x, to_y, words = RELATIONS[relation]
    for key in map(str, range(8)):
        scene = compose_pair(HORSE, BUS, relation, "green", key=key)
        assert words in scene.caption
        first, second = (
            np.argwhere(drawn(Scene(key="", colour="green", caption="", placed_drawings=(each,)))).mean(axis=0)
            for each in scene.placed
        )
        y, x = first - second
        assert to_x * x > 16 or to_y * y > 16
        assert abs(y if to_x else x) < 12
        both = drawn(scene).sum()
        alone = sum(drawn(Scene(key="", colour="green", caption="", placed_drawings=(e,))).sum() for e in scene.placed)
        assert both == alone  # nothing is hidden or cropped


@pytest.mark.parametrize("number", NUMBERS)
def test_image_has_the_count_of_the_caption(number):
    """Count connected areas in the image and in one drawing."""
    for key in map(str, range(4)):
        scene = compose_group(PEAR, number, "white", key=key)
        areas, left = 0, drawn(scene, 128)
        while left.any():
            areas, left = areas + 1, left & ~_area(left, tuple(np.argwhere(left)[0]))
        one = drawn(Scene(key="", colour="white", caption="", placed_drawings=scene.placed[:1]), 128)
        assert areas == number * _areas(one)
        assert NUMBERS[number] in scene.caption


def _areas(mask: np.ndarray) -> int:
    areas = 0
    while mask.any():
        areas, mask = areas + 1, mask & ~_area(mask, tuple(np.argwhere(mask)[0]))
    return areas


def _area(mask: np.ndarray, start: tuple[int, ...]) -> np.ndarray:
    """Return the pixels of `mask` that are connected to `start`."""
    found = np.zeros_like(mask)
    found[start] = True
    while True:
        padded = np.pad(found, 1)
        grown = mask & np.any(
            [padded[dy : dy + len(mask), dx : dx + len(mask)] for dy in range(3) for dx in range(3)], 0
        )
        if (grown == found).all():
            return found
        found = grown


def test_squares_do_not_overlap_or_leave_the_image():
    for scene in [*pairs(objects(96), 60, heldout=False), *groups(objects(96), 60, heldout=False)]:
        for _, side, x, y in scene.placed:
            assert side / 2 - 1e-9 <= min(x, y) and max(x, y) <= 1 - side / 2 + 1e-9
        for (_, side, x, y), (_, _, other_x, other_y) in combinations(scene.placed, 2):
            assert max(abs(x - other_x), abs(y - other_y)) >= side - 1e-9


# --- held-out combinations


def test_splits_share_no_pairs_or_counts():
    usual = objects(96)
    for scene in pairs(usual, 200, heldout=False) + pairs(usual, 50, heldout=True):
        first, second = (each.emoji for each in scene.placed)
        assert first != second
        assert scene.colour not in (heldout_colour(first), heldout_colour(second))
    trained = {frozenset(each.emoji.code for each in scene.placed) for scene in pairs(usual, 400, heldout=False)}
    heldout = {frozenset(each.emoji.code for each in scene.placed) for scene in pairs(usual, 50, heldout=True)}
    assert not trained & heldout
    numbers = {(scene.placed[0].emoji.code, len(scene.placed)) for scene in groups(usual, 400, heldout=False)}
    assert not numbers & {(s.placed[0].emoji.code, len(s.placed)) for s in groups(usual, 100, heldout=True)}
    assert {number for _, number in numbers} == set(NUMBERS)
    share = np.mean([is_heldout_pair(a, b) for a, b in combinations(usual, 2)])
    assert 0.11 < share < 0.14


def test_more_scenes_extend_the_list_and_few_objects_end_it():
    usual = objects(96)
    assert pairs(usual, 20, heldout=False)[:5] == pairs(usual, 5, heldout=False)
    assert pairs(usual, 5, heldout=False, seed=1) != pairs(usual, 5, heldout=False)
    assert pairs([HORSE], 5, heldout=False) == pairs([], 5, heldout=False) == groups([], 5, heldout=True) == []


def test_heldout_prompts_of_scenes():
    relations, counts = heldout_relations(20), heldout_counts(20)
    for prompt in relations:
        assert prompt.relation in RELATIONS and prompt.other is not None
        assert is_heldout_pair(BY_NAME[prompt.object], BY_NAME[prompt.other])
        expected = pair_caption(BY_NAME[prompt.object], BY_NAME[prompt.other], prompt.relation, prompt.colour)
        assert prompt.prompt == expected
    for prompt in counts:
        assert prompt.number == heldout_number(BY_NAME[prompt.object])
        assert prompt.prompt == group_caption(BY_NAME[prompt.object], prompt.number, prompt.colour)
    assert heldout_relations(20, seed=1) != relations == heldout_relations(30)[:20]


# --- the build


def icon_file(folder: Path, **icons: str) -> Path:
    path = folder / "icons.json"
    bodies = {name: {"body": body} for name, body in icons.items()}
    path.write_text(json.dumps({"prefix": "test", "icons": bodies, "width": 32, "height": 32}))
    return path


def test_build_with_scenes_and_a_second_style(tmp_path):
    usual = objects(6)
    slug = usual[0].name.replace(" ", "-")
    file = icon_file(tmp_path, **{slug: '<rect x="8" y="8" width="16" height="16" fill="#f0f"/>'})
    (tmp_path / "info.json").write_text(json.dumps({"name": "Squares", "license": {"spdx": "MIT"}}))
    more = {"relations": 0.2, "counts": 0.1, "styles": {"square": file}}
    built = build_emoji(tmp_path / "out", (32,), 1, limit_objects=6, workers=1, progress=False, **more)
    assert built["arguments"]["styles"] == ["square"] and built["styles"]["square"]["licence"] == "MIT"
    assert built["samples"]["train"] == round(7 * 11 / 0.7)
    abouts = []
    for split in ("train", "heldout"):
        for path in (tmp_path / "out" / split).glob("*.tar"):
            with tarfile.open(path) as tar:
                files = {name: tar.extractfile(name).read() for name in tar.getnames()}
            abouts += [
                (json.loads(files[name]), files[name[:-4] + "txt"].decode()) for name in files if name.endswith("json")
            ]
    assert all(about["object"].split()[0] in text or "count" in about for about, text in abouts)
    styled_ones = [(about, text) for about, text in abouts if about.get("style")]
    assert styled_ones and all(text.endswith(", square style") for _, text in styled_ones)
    assert all(about["licence"] == "MIT" for about, _ in styled_ones)
    related = [(about, text) for about, text in abouts if "relation" in about]
    assert related and all(
        RELATIONS[about["relation"]][2] in text and about["other"] in text for about, text in related
    )
    counted = [(about, text) for about, text in abouts if "count" in about]
    assert counted and all(NUMBERS[about["count"]] in text for about, text in counted)


def test_style_uses_the_drawings_of_its_file(tmp_path):
    file = icon_file(tmp_path, horse='<rect width="32" height="32" fill="#010203"/>')
    style = Style("square", str(file))
    (horse,) = styled([HORSE, BUS], style)
    picture = compose(horse, "white")
    pixels = np.asarray(Image.open(io.BytesIO(picture.render(64))))
    side = np.sqrt((pixels == (1, 2, 3)).all(axis=-1).sum()) / 64
    assert side == pytest.approx(picture.side, abs=0.04)
    assert picture.key == compose(HORSE, "white").key + "-square"
    assert inner_svg(horse)[0] == "0 0 32 32"
    assert credit(style) == {"source": "square", "licence": "not said", "attribution": "not said"}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "not valid JSON"),
        ("[]", "not an iconify"),
        ('{"icons": {"horse": 3}}', "not an iconify"),
        ('{"icons": {}}', "none of"),
    ],
)
def test_invalid_style_file_is_an_error(tmp_path, text, words):
    (tmp_path / "icons.json").write_text(text)
    with pytest.raises(UserError, match=words):
        styled([HORSE], Style("bad", str(tmp_path / "icons.json")))
    with pytest.raises(UserError, match=r"none\.json does not exist"):
        styled([HORSE], Style("none", str(tmp_path / "none.json")))


@pytest.mark.parametrize("bad", [{"relations": -0.1}, {"counts": float("nan")}, {"relations": 0.6, "counts": 0.6}])
def test_invalid_fractions_are_errors(tmp_path, bad):
    with pytest.raises(UserError):
        build_emoji(tmp_path / "out", (32,), progress=False, **bad)
