"""Test Fluent Emoji with a few synthetic drawings: names, captions, held-out combinations, images, shards."""

import argparse
import io
import json
import random
import shutil
import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("resvg_py")

from imagen.emoji.colour import background_colour
from imagen.emoji.fluent import captions
from imagen.emoji.fluent.background import Background
from imagen.emoji.fluent.catalogue import GENDERS, TONES, Drawing, Source, catalogue, faces, people, things
from imagen.emoji.fluent.dataset import build_fluent, scenes
from imagen.emoji.fluent.degrade import degraded
from imagen.emoji.fluent.heldout import heldout_colour, heldout_number, is_heldout_pair, is_heldout_person
from imagen.emoji.fluent.scene import Scene, compose_group, compose_pair, compose_single
from imagen.emoji.fluent.selection import Selection, add_options, common_words, selection
from imagen.emoji.picture import PALETTE
from imagen.errors import UserError


@pytest.fixture(scope="module")
def drawings(source: Source) -> dict[str, Drawing]:
    return {each.icon: each for each in catalogue(source)}


# --- names


def test_names_are_parsed(source: Source, drawings: dict[str, Drawing]) -> None:
    woman = drawings["woman-astronaut-medium-dark"]
    assert (woman.name, woman.role, woman.gender, woman.tone) == ("astronaut", "astronaut", "woman", "medium-dark")
    assert woman.combination == "astronaut/woman/medium-dark"
    neutral = drawings["person-wearing-turban"]
    assert (neutral.name, neutral.role, neutral.gender) == ("person wearing turban", "wearing turban", None)
    assert neutral.combination == "wearing turban/person/yellow"
    assert drawings["person-fairy-dark"].role == "fairy"
    assert drawings["ninja-dark"].role is None  # there is no woman ninja
    assert drawings["womans-hat"].name == "woman's hat" and drawings["womans-hat"].role is None
    assert drawings["automobile"].name == "car"
    assert (
        drawings["t-rex"].article == "a " and drawings["octopus"].article == "an " and not drawings["glasses"].article
    )


def test_only_things_and_faces_are_listed(source: Source, drawings: dict[str, Drawing]) -> None:
    assert not {"two-thirty", "one-oclock", "left-arrow", "phoenix"} & set(drawings)
    assert [each.name for each in things(source, 1)] == ["horse", "octopus", "T-Rex", "glasses", "car"]
    assert [each.name for each in things(source, 2)][3] == "woman's hat"
    assert [each.name for each in faces(source)] == ["winking face"]


def test_a_shortcode_of_one_word_counts_as_the_name(tmp_path: Path, source: Source) -> None:
    names = tmp_path / "names"
    shutil.copytree(source.names, names)
    data = json.loads((names / "en" / "data.json").read_text())
    hat, horse = (next(e for e in data if e["label"] == label)["hexcode"] for label in ("woman’s hat", "horse"))
    before = things(source, 1)
    for codes, added in ((["hat", "womans_hat"], 1), ("hat", 1), (["horse", "2nd"], 0), ("bonnet", 0)):
        (names / "en" / "shortcodes" / "emojibase.json").write_text(json.dumps({hat: codes, horse: "hat"}))
        found = things(Source(source.icons, str(names)), 1)
        catalogue.cache_clear()  # the next codes are read from the same paths
        assert [each.name for each in found if each not in before] == ["woman's hat"] * added
    catalogue.cache_clear()


def test_people_come_in_every_combination(source: Source) -> None:
    found = people(source, ("person-role",))
    assert {each.role for each in found} == {"astronaut", "cook", "wearing turban"}
    assert len(found) == 3 * 3 * 6 == len({each.combination for each in found})
    assert {each.role for each in people(source, ("person-fantasy",))} == {"fairy"}


def test_people_of_some_genders(source: Source) -> None:
    found = people(source, genders=("man", "woman"))
    assert len(found) == 3 * 2 * 6 and {each.gender for each in found} == {"man", "woman"}
    (woman,) = (each for each in found if each.icon == "woman-astronaut-dark")
    assert captions.single(woman, BLUE) == "a woman astronaut with dark skin on a blue background"
    assert captions.single(woman, BLUE, wording=0.08) == "an astronaut with dark skin on a blue background"
    named = ["woman" in captions.single(woman, BLUE, wording=k / 1000).replace("female", "woman") for k in range(1000)]
    assert 0.8 < sum(named) / 1000 < 0.9
    (turban,) = (each for each in found if each.icon == "man-wearing-turban")
    assert captions.single(turban, BLUE, wording=0.08) == "a person wearing turban on a blue background"
    for genders in ((), ("man", "boy")):
        with pytest.raises(UserError, match="man, woman, person"):
            people(source, genders=genders)


def test_errors_name_missing_files(tmp_path: Path, source: Source) -> None:
    with pytest.raises(UserError, match="nowhere"):
        catalogue(Source(str(tmp_path / "nowhere.json"), source.names))
    with pytest.raises(UserError, match=r"groups\.json"):
        catalogue(Source(source.icons, str(tmp_path)))


# --- captions

BLUE, GRADED = Background(colour="blue"), Background(colour="orange", gradient="linear")


@pytest.mark.parametrize(
    ("icon", "size", "place", "wording", "expected"),
    [
        ("octopus", "", "center", 0.0, "an octopus on a blue background"),
        ("octopus", "small", "top left", 0.0, "a small octopus in the top left corner, on a blue background"),
        ("octopus", "small", "left", 0.5, "small octopus, on the left, blue background"),
        ("octopus", "", "center", 0.65, "a blue background with an octopus"),
        ("octopus", "", "center", 0.75, "an octopus in front of a blue background"),
        ("octopus", "", "center", 0.85, "an emoji of an octopus, blue background"),
        ("glasses", "", "center", 0.95, "a picture of glasses, blue background"),
        ("woman-astronaut-dark", "", "center", 0.0, "a woman astronaut with dark skin on a blue background"),
        ("woman-astronaut-dark", "", "center", 0.3, "a dark-skinned woman astronaut on a blue background"),
        ("man-cook-light", "", "center", 0.13, "a male cook with light skin on a blue background"),
        ("astronaut-medium", "", "center", 0.0, "an astronaut with medium skin on a blue background"),
        ("astronaut", "", "center", 0.0, "an astronaut on a blue background"),
        ("astronaut", "", "center", 0.3, "an astronaut with yellow skin on a blue background"),
        ("man-wearing-turban", "", "center", 0.13, "a man wearing turban on a blue background"),
        ("person-wearing-turban-light", "", "center", 0.5, "person wearing turban with light skin, blue background"),
    ],
)
def test_captions(
    drawings: dict[str, Drawing], icon: str, size: str, place: str, wording: float, expected: str
) -> None:
    assert captions.single(drawings[icon], BLUE, size, place, wording) == expected


def test_captions_of_scenes(drawings: dict[str, Drawing]) -> None:
    horse, octopus = drawings["horse"], drawings["octopus"]
    graded = "a horse to the left of an octopus, on an orange gradient background"
    assert captions.pair(horse, octopus, "left", GRADED) == graded
    assert captions.pair(horse, octopus, "above", BLUE, 0.6) == "horse above octopus, blue background"
    assert captions.group(octopus, 3, BLUE) == "three octopuses on a blue background"


def split(source: Source, *, heldout: bool, seed: int = 0, share: float = 0.25) -> list[Scene]:
    return scenes(
        Selection(source=source).things(),
        people(source),
        source.icons,
        variants=2,
        people_variants=2,
        relations=share,
        counts=share,
        seed=seed,
        heldout=heldout,
    )


def test_captions_describe_the_image(source: Source) -> None:
    for scene in split(source, heldout=False) + split(source, heldout=True):
        about, caption = scene.about, scene.caption
        assert f"{about['colour']} {'gradient ' if about['gradient'] else ''}background" in caption
        if "relation" in about:
            assert caption.index(about["object"]) < caption.rindex(about["other"])
            assert {"left": "to the left of", "right": "to the right of"}.get(about["relation"], about["relation"]) in (
                caption
            )
        elif "count" in about:
            assert {2: "two", 3: "three", 4: "four"}[about["count"]] in caption
        else:
            assert ("small" in caption) == (about["size"] == "small")
            assert about["object"].removeprefix("person ") in caption
        if "role" in about:
            gender, tone = about["gender"], about["tone"]
            assert (f"{tone} skin" in caption or f"{tone}-skinned" in caption) or tone == "yellow"
            words = set(caption.split())
            assert bool(words & {"woman", "female"}) == (gender == "woman")
            assert bool(words & {"man", "male"}) == (gender == "man")


# --- held-out combinations


@pytest.mark.parametrize("seed", [0, 1])
def test_train_split_excludes_held_out_combinations(source: Source, seed: int) -> None:
    train, heldout = split(source, heldout=False, seed=seed), split(source, heldout=True, seed=seed)
    for scene, is_heldout in [*((each, False) for each in train), *((each, True) for each in heldout)]:
        first, last = scene.placed[0].drawing, scene.placed[-1].drawing
        colour = scene.background.colour
        if scene.relation is not None:
            assert is_heldout_pair(first, last) == is_heldout
            assert colour not in (heldout_colour(first), heldout_colour(last))
        elif len(scene.placed) > 1:
            assert (len(scene.placed) == heldout_number(first)) == is_heldout and colour != heldout_colour(first)
        else:
            assert (colour == heldout_colour(first) or is_heldout_person(first)) == is_heldout
    single = [{scene.key.rpartition("-")[0] for scene in each if len(scene.placed) == 1} for each in (train, heldout)]
    assert not single[0] & single[1]


def test_train_split_contains_each_pair_of_properties() -> None:
    """Every pair of role, gender and tone is in the train split; only combinations of all three are held out."""
    roles = [
        "health worker",
        "student",
        "teacher",
        "judge",
        "farmer",
        "cook",
        "mechanic",
        "factory worker",
        "scientist",
    ]
    roles += ["office worker", "technologist", "singer", "artist", "pilot", "astronaut", "firefighter", "detective"]
    roles += ["guard", "police officer", "construction worker", "wearing turban", "in tuxedo", "with veil"]
    roles += ["feeding baby", "factory worker"]
    all_people = [
        Drawing("", role, "a ", "people-body", "person-role", role, gender, tone)
        for role in roles
        for gender in (None, *GENDERS)
        for tone in (None, *TONES)
    ]
    trained = [each for each in all_people if not is_heldout_person(each)]
    for parts in (("role", "gender"), ("role", "tone"), ("gender", "tone")):
        pairs = Counter(tuple(getattr(each, part) for part in parts) for each in trained)
        assert pairs.keys() == {tuple(getattr(each, part) for part in parts) for each in all_people}
    assert len(all_people) / 8 < len(all_people) - len(trained) < len(all_people) / 5


# --- images


def extent_and_centre(scene: Scene, size: int) -> tuple[float, float, float]:
    pixels = scene.pixels(size).astype(float)
    drawn = np.abs(pixels - scene.background.pixels(size)).sum(-1) > 60
    rows, columns = drawn.any(1).nonzero()[0], drawn.any(0).nonzero()[0]
    width, height = columns[-1] - columns[0] + 1, rows[-1] - rows[0] + 1
    return max(width, height) / size, (columns[0] + columns[-1] + 1) / 2 / size, (rows[0] + rows[-1] + 1) / 2 / size


@pytest.mark.parametrize("size", [32, 64, 256])
def test_drawing_has_the_stated_extent_and_position(source: Source, drawings: dict[str, Drawing], size: int) -> None:
    for variant in range(12):
        scene = compose_single(drawings["octopus"], "purple", source.icons, variant)
        _, extent, x, y = scene.placed[0]
        tolerance = 1.5 / size + 0.02  # the box of a drawing is accurate to 1/72 of its square
        assert extent_and_centre(scene, size) == pytest.approx((extent, x, y), abs=tolerance)
        lowest, highest = (0.28, 0.42) if scene.size == "small" else (0.75, 0.95)
        assert lowest <= extent <= highest
        assert extent / 2 <= x <= 1 - extent / 2 and extent / 2 <= y <= 1 - extent / 2


def test_masters_of_all_sizes_show_the_same_image(source: Source, drawings: dict[str, Drawing]) -> None:
    scene = compose_single(drawings["horse"], "red", source.icons, 1)
    small = scene.pixels(64).astype(float)
    large = scene.pixels(256).reshape(64, 4, 64, 4, 3).mean((1, 3))
    assert np.abs(small - large).mean() < 0.8  # levels; rounding causes 0.3
    assert np.abs(small - large).max() < 40  # at edges


def test_colours_are_exact(source: Source, drawings: dict[str, Drawing]) -> None:
    scene = compose_group(drawings["horse"], 2, "blue", source.icons, key="k")
    scene = Scene(**{**scene.__dict__, "background": BLUE})
    for size in (64, 256):
        pixels = scene.pixels(size)
        assert tuple(pixels[0, 0]) == PALETTE["blue"]
        for _, _, x, y in scene.placed:
            assert tuple(pixels[int(y * size), int(x * size)]) == (0, 255, 0)


def test_pairs_are_in_the_stated_relation(source: Source, drawings: dict[str, Drawing]) -> None:
    for k, (relation, (to_x, to_y)) in enumerate({"left": (-1, 0), "below": (0, 1)}.items()):
        scene = compose_pair(drawings["horse"], drawings["octopus"], relation, "red", source.icons, key=str(k))
        (_, a, x0, y0), (_, b, x1, y1) = scene.placed
        apart = (x0 - x1) * to_x + (y0 - y1) * to_y
        assert apart > (a + b) / 2  # they do not touch
        assert abs((x0 - x1) * to_y) + abs((y0 - y1) * to_x) < 0.13


@pytest.mark.parametrize("colour", PALETTE)
def test_gradients_are_classified_as_their_colour(colour: str) -> None:
    kinds = [Background(colour=colour, gradient="radial")]
    kinds += [Background(colour=colour, gradient="linear", angle=angle) for angle in np.linspace(0, 6, 9)]
    for background in kinds:
        pixels = background.pixels(64)
        assert background_colour(pixels.round().astype(np.uint8)) == colour
        assert pixels.min() >= 0 and pixels.max() <= 255
        assert pixels.std() > 4 or colour in ("white", "black")
    down = Background(colour="gray", gradient="linear", angle=np.pi / 2).pixels(64)[..., 0]
    assert down[0, 0] == pytest.approx(120 * 0.8, abs=1) and down[-1, 0] == pytest.approx(120 + 135 * 0.28, abs=1)


def test_degraded_drawings(source: Source, drawings: dict[str, Drawing]) -> None:
    flat = np.full((64, 64, 3), 77, dtype=np.uint8)
    pixels = compose_single(drawings["horse"], "red", source.icons, 1).pixels(64)
    apart = []
    for seed in range(20):
        assert (degraded(flat, random.Random(seed)) == 77).all()  # colours are unchanged
        first, second = (degraded(pixels, random.Random(seed)) for _ in range(2))
        assert (first == second).all() and first.dtype == np.uint8
        apart.append(np.abs(first.astype(float) - pixels).mean())
        assert np.abs(first.astype(float).mean((0, 1)) - pixels.mean((0, 1))).max() < 4  # its size is unchanged
    assert 1 <= sum(value == 0 for value in apart) <= 10  # one in five is unchanged
    assert 0.3 < max(apart) < 8


# --- shards


def test_build_of_shards(source: Source, tmp_path: Path) -> None:
    built = [
        build_fluent(
            tmp_path / name,
            Selection(source=source),
            (32, 64),
            variants=1,
            people_variants=1,
            workers=workers,
            progress=False,
        )
        for name, workers in (("a", 1), ("b", 2))
    ]
    assert built[0] == built[1]
    assert {"octopus", "astronaut", "car", "person wearing turban"} <= set(built[0]["names"])
    assert built[0]["licence"] == "MIT"
    tars = [(tmp_path / name / "train" / "00000.tar").read_bytes() for name in "ab"]
    assert tars[0] == tars[1]
    with tarfile.open(fileobj=io.BytesIO(tars[0])) as tar:
        members = {member.name: tar.extractfile(member).read() for member in tar.getmembers()}  # type: ignore[union-attr]
    keys = {name.partition(".")[0] for name in members}
    assert len(keys) == built[0]["samples"]["train"]
    key = min(keys)
    assert Image.open(io.BytesIO(members[f"{key}.32.png"])).size == (32, 32)
    assert json.loads(members[f"{key}.json"])["colour"] in members[f"{key}.txt"].decode()
    repeated = build_fluent(
        tmp_path / "a", Selection(source=source), (32, 64), variants=1, people_variants=1, progress=False
    )
    assert repeated == built[0]
    others = ({}, (64,)), ({"genders": ("man",)}, (32, 64)), ({"common": True}, (32, 64))
    for options, sizes in others:
        other = Selection(source=source, **options)  # type: ignore[arg-type]
        with pytest.raises(UserError, match="other arguments"):
            build_fluent(tmp_path / "a", other, sizes, variants=1, people_variants=1, progress=False)


def test_build_with_degraded_masters(source: Source, tmp_path: Path) -> None:
    built = build_fluent(
        tmp_path / "a",
        Selection(source=source),
        (64, 256),
        variants=1,
        most=8,
        most_heldout=2,
        degrade=True,
        progress=False,
    )
    assert built["samples"] == {"train": 8, "heldout": 2}
    with tarfile.open(tmp_path / "a" / "train" / "00000.tar") as tar:
        members = {member.name: tar.extractfile(member).read() for member in tar.getmembers()}  # type: ignore[union-attr]
    assert len(members) == 8 * 4
    apart = []
    for name in members:
        if name.endswith(".256.png"):
            large, small = (
                np.asarray(Image.open(io.BytesIO(members[each])), dtype=float)
                for each in (name, name.replace("256", "64"))
            )
            apart.append(np.abs(large.reshape(64, 4, 64, 4, 3).mean((1, 3)) - small).mean())
    assert max(apart) > 1 > min(apart)  # some are unchanged


def test_command_line_selects_drawings(source: Source) -> None:
    parser = argparse.ArgumentParser()
    add_options(parser)
    paths = ["--icons", source.icons, "--names", source.names]
    assert selection(parser.parse_args(paths)) == Selection(source=source)
    chosen = selection(parser.parse_args([*paths, "--words", "1", "--no-faces", "--roles", "--limit", "2"]))
    names = {each.name for each in chosen.things()}
    assert len(names) == 2 and names < {"horse", "octopus", "T-Rex", "glasses", "car"} and chosen.people() == []


def test_common_words_are_one_token_of_the_text_encoder(source: Source) -> None:
    assert common_words(["pizza", "Lion", "teapot", "alembic", "t-shirt"]) == {"pizza", "Lion"}
    chosen = Selection(source=source, words=1, common=True, faces=False)
    assert {each.name for each in chosen.things()} == {"horse", "octopus", "glasses", "car"}
