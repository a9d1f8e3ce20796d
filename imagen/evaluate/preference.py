"""Compare two sets of images blindly, side by side, as the paper did with raters (section 4.3).

The page shows pairs without their sets. `key.json`, which the page does not read, maps its answers back to the sets.
Everything works from files, without a server.
"""

import json
import random
import secrets
import shutil
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

from imagen.errors import UserError
from imagen.evaluate.metrics.interval import Interval
from imagen.files import read_json, replacing, write_json
from imagen.pages import write_page
from imagen.pictures import read_metadata

KEY = "key.json"


class Preference(NamedTuple):
    """Count how often each set was preferred."""

    first: int
    second: int
    ties: int
    share: Interval  # of pairs in which the first set was preferred; a tie counts as half

    @property
    def answers(self) -> int:
        return self.first + self.second + self.ties


def write_preference_page(first: Path, second: Path, out: Path, *, seed: int = 0) -> int:
    """Write `out`/index.html for two folders of images of the same prompts; return the number of pairs.

    The folders are those of `imagen sample` or of a suite: images are paired by name, and their prompts must agree.
    The order of pairs and the sides are random. Raises UserError if `out` exists, if a
    folder contains no images, or if prompts differ.
    """
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file; choose another folder")
    if out.exists() and any(out.iterdir()):
        raise UserError(f"{out} is not empty; choose another folder, or delete it with its answers")
    names = [sorted(file.name for file in folder.glob("[0-9]*.png")) for folder in (first, second)]
    for folder, found in zip((first, second), names, strict=True):
        if not found:
            raise UserError(f"{folder} contains no images of `imagen sample` (0000.png, 0001.png, ...)")
    common = [name for name in names[0] if name in set(names[1])]
    if len(common) < max(map(len, names)):
        raise UserError(
            f"{first} contains {len(names[0])} images and {second} {len(names[1])}, {len(common)} of the same number; "
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
    key, given = _read_key(page), read_json(answers)
    if not isinstance(given, dict) or given.get("id") != key["id"] or not isinstance(given.get("answers"), dict):
        raise UserError(f"{answers} contains no answers to {page}")
    count: Counter[str] = Counter()
    pairs = {str(number): pair for number, pair in enumerate(key["pairs"])}
    for number, answer in given["answers"].items():
        if number not in pairs or answer not in ("left", "right", "tie"):
            raise UserError(f"{answers}: {json.dumps({number: answer})[:80]} is not an answer to one of its pairs")
        swapped = pairs[number]["swapped"]
        count["tie" if answer == "tie" else "first" if (answer == "left") != swapped else "second"] += 1
    if not count:
        raise UserError(f"{answers} contains no answers yet")
    values = [1.0] * count["first"] + [0.5] * count["tie"] + [0.0] * count["second"]
    return Preference(count["first"], count["second"], count["tie"], _share(values))


def _read_key(page: Path) -> dict[str, Any]:
    """Return the content of key.json. Raises UserError if it is missing or damaged."""
    key = read_json(page / KEY)
    pairs = key.get("pairs") if isinstance(key, dict) else None
    if not isinstance(pairs, list) or not all(isinstance(each, dict) and "swapped" in each for each in pairs):
        raise UserError(f"{page / KEY} is damaged; write the page again")
    return {"id": None, "first": "first", "second": "second", **key}


def _share(values: list[float]) -> Interval:
    """Return the mean with Wilson's interval, in which a tie counts as half an answer for each side."""
    total = len(values)
    return Interval.of_share(sum(values), total)


def _prompt(path: Path) -> str:
    made: dict[str, Any] = read_metadata(path) or {}
    return str(made.get("prompt", ""))


def _strip(path: Path) -> None:
    """Rewrite an image without its metadata, which would show where it comes from."""
    from PIL import Image

    with Image.open(path, formats=["PNG"]) as image:
        image.load()
        plain = Image.new(image.mode, image.size)
        plain.paste(image)
    plain.save(path, format="PNG")
