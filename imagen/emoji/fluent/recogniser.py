"""Train the recogniser of Fluent Emoji on the drawings alone, and measure it on pictures of what training held out.

    python -m imagen.emoji.fluent.recogniser --icons ICONS.JSON --names EMOJIBASE-DATA --out FOLDER

It names things, "octopus", and people by role, gender and skin tone, "astronaut/woman/dark".
"""

import argparse
import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from imagen.emoji.fluent.background import draw_background
from imagen.emoji.fluent.catalogue import Drawing, Source, people
from imagen.emoji.fluent.dataset import choose_things, scenes
from imagen.emoji.fluent.sprites import alone
from imagen.emoji.picture import PALETTE, hashed
from imagen.emoji.recogniser import SIDE, Recogniser
from imagen.emoji.recogniser_training import degraded, save_recogniser, train_recogniser


def background(rng: random.Random) -> Image.Image:
    """A plain or graded background of 64 x 64 pixels, of a colour near one of the palette."""
    pixels = draw_background(rng, rng.choice(list(PALETTE))).pixels(SIDE)
    off = np.array([rng.gauss(0, 12) for _ in range(3)], dtype=np.float32)
    return Image.fromarray((pixels + off).round().clip(0, 255).astype(np.uint8))


def drawings(source: Source, words: int, roles: Sequence[str]) -> list[Drawing]:
    """What is to be told apart: one drawing for each name and each combination."""
    return list({each.combination: each for each in (*choose_things(source, words), *people(source, roles))}.values())


def accuracy(
    network: Recogniser, source: Source, known: Sequence[Drawing], n: int, *, blur: float = 0.0, noise: float = 0.0
) -> dict[str, float]:
    """Measure shares in [0, 1] of held-out pictures, `n` of each kind, that are named right.

    "things"; "people", right in role, gender and tone, and each of these; "pair": both drawings; "number": as many as
    there are, and all of them the right thing. blur in pixels and noise in levels of 255 are added.
    """
    rng = np.random.default_rng(0)
    whole = scenes(
        [each for each in known if each.role is None],
        [each for each in known if each.role is not None],
        source.icons,
        variants=1,
        people_variants=1,
        relations=0.3,
        counts=0.3,
        seed=hashed("recogniser") % 2**32,
        heldout=True,
    )
    single = [scene for scene in whole if len(scene.placed) == 1]
    kinds = {
        "things": [scene for scene in single if scene.placed[0].drawing.role is None][:n],
        "people": [scene for scene in single if scene.placed[0].drawing.role is not None][:n],
        "pair": [scene for scene in whole if scene.relation is not None][:n],
        "number": [scene for scene in whole if len(scene.placed) > 1 and scene.relation is None][:n],
    }
    found = {}
    for kind, chosen in kinds.items():
        pictures = [Image.fromarray(scene.pixels(SIDE)) for scene in chosen]
        if blur or noise:
            pictures = [degraded(picture, rng, blur, noise) for picture in pictures]
        seen = [[each.name for each in names] for names in network.detect(pictures)]
        asked = [[placed.drawing.combination for placed in scene.placed] for scene in chosen]
        if kind == "number":
            right = [names == wanted for names, wanted in zip(seen, asked, strict=True)]
        elif kind == "pair":
            right = [set(wanted) <= set(names) for names, wanted in zip(seen, asked, strict=True)]
        else:
            right = [names[:1] == wanted for names, wanted in zip(seen, asked, strict=True)]
        found[kind] = sum(right) / max(len(right), 1)
        if kind == "people":
            for index, part in enumerate(("role", "gender", "tone")):
                same = [
                    names[0].split("/")[index : index + 1] == wanted[0].split("/")[index : index + 1]
                    for names, wanted in zip(seen, asked, strict=True)
                ]
                found[part] = sum(same) / max(len(same), 1)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--icons", type=Path, required=True)
    parser.add_argument("--names", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--words", type=int, default=2)
    parser.add_argument("--roles", nargs="*", default=["person-role", "person-fantasy"])
    parser.add_argument("--limit", type=int, help="so many drawings alone")
    parser.add_argument("--steps", type=int, default=8000)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--n", type=int, default=384, help="pictures of each kind to measure it on")
    options = parser.parse_args()
    source = Source(str(options.icons.resolve()), str(options.names.resolve()))
    known = drawings(source, options.words, options.roles)[: options.limit]
    sprites = {each.combination: alone(source.icons, each.icon) for each in known}
    network = train_recogniser(sprites, background=background, steps=options.steps, width=options.width)
    measured = {
        name: accuracy(network, source, known, options.n, blur=blur, noise=noise)
        for name, blur, noise in (("clean", 0, 0), ("blur 1, noise 16", 1, 16), ("blur 1.5, noise 32", 1.5, 32))
    }
    for name, found in measured.items():
        print(f"{name}: " + ", ".join(f"{kind} {share:.1%}" for kind, share in found.items()), flush=True)
    save_recogniser(network, options.out, steps=options.steps, accuracy=measured)


if __name__ == "__main__":
    main()
