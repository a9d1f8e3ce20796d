"""Blind side-by-side comparison of two sets of images, as the paper's raters made it (section 4.3).

A folder holds a page that shows pairs without saying which set an image belongs to, and `key.json`, which the page does
not read and which maps its answers back. It works from files, without a server.
"""

import json
import random
import secrets
import shutil
from collections import Counter
from pathlib import Path
from typing import Any, Literal, NamedTuple

from imagen.errors import UserError
from imagen.evaluate.metrics.interval import Interval
from imagen.files import read_json, replacing, write_json
from imagen.pages import write_page
from imagen.pictures import read_metadata

Answer = Literal["left", "right", "tie"]
KEY = "key.json"


class Preference(NamedTuple):
    """How often each set was preferred. `share` of the first set counts a tie as half."""

    first: int
    second: int
    ties: int
    share: Interval  # of the first set

    @property
    def answers(self) -> int:
        return self.first + self.second + self.ties


def write_preference_page(first: Path, second: Path, out: Path, *, seed: int = 0) -> int:
    """Write `out`/index.html for two folders of images of the same prompts; return the number of pairs.

    The folders are those of `imagen sample` or of a suite: images are paired by name, and their prompts must agree.
    Which image is left is random for each pair, and so is the order of pairs. Raises UserError if `out` exists, if a
    folder holds no images, or if prompts differ.
    """
    if out.exists() and any(out.iterdir()):
        raise UserError(f"{out} is not empty; choose another folder, or delete it with its answers")
    names = [sorted(file.name for file in folder.glob("[0-9]*.png")) for folder in (first, second)]
    for folder, found in zip((first, second), names, strict=True):
        if not found:
            raise UserError(f"{folder} holds no images that `imagen sample` wrote (0000.png, 0001.png, ...)")
    common = [name for name in names[0] if name in set(names[1])]
    if len(common) < max(map(len, names)):
        raise UserError(
            f"{first} holds {len(names[0])} images and {second} {len(names[1])}, {len(common)} of the same number; "
            "sample both with the same prompts and --n"
        )
    rng = random.Random(seed)
    rng.shuffle(common)
    pairs, key = [], []
    for number, name in enumerate(common):
        prompt = _prompt(first / name)
        if prompt != _prompt(second / name):
            raise UserError(f"{first / name} and {second / name} are images of different prompts")
        swapped = rng.random() < 0.5
        for side, folder in zip(("left", "right"), (second, first) if swapped else (first, second), strict=True):
            with replacing(out / "images" / f"{number:04d}-{side}.png") as temporary:
                shutil.copyfile(folder / name, temporary)
                _strip(temporary)
        pairs.append(
            {"prompt": prompt, "left": f"images/{number:04d}-left.png", "right": f"images/{number:04d}-right.png"}
        )
        key.append({"image": name, "swapped": swapped})
    identity = secrets.token_hex(8)  # so that answers are never scored against another page's key
    write_json(out / KEY, {"id": identity, "first": str(first), "second": str(second), "pairs": key})
    write_page(out / "index.html", Path(__file__).with_name("preference.html"), pairs=pairs, identity=identity)
    return len(pairs)


def score_answers(page: Path, answers: Path) -> Preference:
    """Return the preference in the answers that a page saved. Raises UserError if they belong to another page."""
    key, given = read_json(page / KEY), read_json(answers)
    if not isinstance(given, dict) or given.get("id") != key["id"] or not isinstance(given.get("answers"), dict):
        raise UserError(f"{answers} holds no answers to {page}")
    count: Counter[str] = Counter()
    for number, answer in given["answers"].items():
        if not number.isdecimal() or int(number) >= len(key["pairs"]) or answer not in ("left", "right", "tie"):
            raise UserError(f"{answers}: {json.dumps({number: answer})[:80]} is no answer to one of its pairs")
        swapped = key["pairs"][int(number)]["swapped"]
        count["tie" if answer == "tie" else "first" if (answer == "left") != swapped else "second"] += 1
    if not count:
        raise UserError(f"{answers} holds no answers yet")
    values = [1.0] * count["first"] + [0.5] * count["tie"] + [0.0] * count["second"]
    return Preference(count["first"], count["second"], count["tie"], _share(values))


def _share(values: list[float]) -> Interval:
    """Return the mean with Wilson's interval, in which a tie counts as half an answer for each side."""
    total = len(values)
    return Interval.of_share(sum(values), total)


def _prompt(path: Path) -> str:
    made: dict[str, Any] = read_metadata(path) or {}
    return str(made.get("prompt", ""))


def _strip(path: Path) -> None:
    """Write an image again without metadata, which would say where it comes from."""
    from PIL import Image

    with Image.open(path, formats=["PNG"]) as image:
        image.load()
        plain = Image.new(image.mode, image.size)
        plain.paste(image)
    plain.save(path, format="PNG")
