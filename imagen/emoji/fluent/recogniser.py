"""Train the recogniser of Fluent Emoji on the original drawings, and measure it on held-out combinations.

    python -m imagen.emoji.fluent.recogniser --icons ICONS.JSON --names EMOJIBASE-DATA --out FOLDER

Its classes are the names of things, such as "octopus", and the combinations of role, gender and skin tone of people,
such as "astronaut/woman/dark".
"""

import argparse
import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from imagen.emoji.fluent.background import draw_background
from imagen.emoji.fluent.catalogue import Drawing
from imagen.emoji.fluent.dataset import scenes
from imagen.emoji.fluent.selection import Selection, add_options, selection
from imagen.emoji.fluent.sprites import cropped_sprite
from imagen.emoji.picture import PALETTE, hashed
from imagen.emoji.recogniser import SIDE, Recogniser
from imagen.emoji.recogniser_training import degraded, save_recogniser, train_recogniser


def background(rng: random.Random) -> Image.Image:
    """Return a background of 64 x 64 pixels, plain or a gradient, with a colour near one of the palette."""
    pixels = draw_background(rng, rng.choice(list(PALETTE))).pixels(SIDE)
    shift = np.array([rng.gauss(0, 12) for _ in range(3)], dtype=np.float32)
    return Image.fromarray((pixels + shift).round().clip(0, 255).astype(np.uint8))


def drawings(selected: Selection) -> list[Drawing]:
    """Return one drawing per class: per name of a thing, and per combination of role, gender and tone."""
    return list({each.combination: each for each in (*selected.things(), *selected.people())}.values())


def accuracy(
    network: Recogniser, icons: str, known: Sequence[Drawing], n: int, *, blur: float = 0.0, noise: float = 0.0
) -> dict[str, float]:
    """Return the accuracies in [0, 1] on held-out images, `n` of each kind.

    "things": the most probable detection is the thing
    "people": it has the right role, gender and tone; also "role", "gender" and "tone" separately
    "pair": both drawings are detected
    "number": the right number of the right thing is detected, and nothing else
    blur, noise: added to the images, in pixels and in levels of 255.
    """
    rng = np.random.default_rng(0)
    heldout = scenes(
        [each for each in known if each.role is None],
        [each for each in known if each.role is not None],
        icons,
        variants=1,
        people_variants=1,
        relations=0.3,
        counts=0.3,
        seed=hashed("recogniser") % 2**32,
        heldout=True,
    )
    single = [scene for scene in heldout if len(scene.placed) == 1]
    kinds = {
        "things": [scene for scene in single if scene.placed[0].drawing.role is None][:n],
        "people": [scene for scene in single if scene.placed[0].drawing.role is not None][:n],
        "pair": [scene for scene in heldout if scene.relation is not None][:n],
        "number": [scene for scene in heldout if len(scene.placed) > 1 and scene.relation is None][:n],
    }
    accuracies = {}
    for kind, chosen in kinds.items():
        images = [Image.fromarray(scene.pixels(SIDE)) for scene in chosen]
        if blur or noise:
            images = [degraded(image, rng, blur, noise) for image in images]
        detected = [[each.name for each in detections] for detections in network.detect(images)]
        expected = [[placed.drawing.combination for placed in scene.placed] for scene in chosen]
        if kind == "number":
            correct = [names == wanted for names, wanted in zip(detected, expected, strict=True)]
        elif kind == "pair":
            correct = [set(wanted) <= set(names) for names, wanted in zip(detected, expected, strict=True)]
        else:
            correct = [names[:1] == wanted for names, wanted in zip(detected, expected, strict=True)]
        accuracies[kind] = sum(correct) / max(len(correct), 1)
        if kind == "people":
            for index, part in enumerate(("role", "gender", "tone")):
                same = [
                    names[0].split("/")[index : index + 1] == wanted[0].split("/")[index : index + 1]
                    for names, wanted in zip(detected, expected, strict=True)
                ]
                accuracies[part] = sum(same) / max(len(same), 1)
    return accuracies


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser)
    parser.add_argument("--out", type=Path, required=True, help="folder for the recogniser")
    parser.add_argument("--steps", type=int, default=8000)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--n", type=int, default=384, help="images of each kind for the evaluation")
    options = parser.parse_args()
    selected = selection(options)
    known, icons = drawings(selected), selected.source.icons
    sprites = {each.combination: cropped_sprite(icons, each.icon) for each in known}
    network = train_recogniser(sprites, background=background, steps=options.steps, width=options.width)
    measured = {
        name: accuracy(network, icons, known, options.n, blur=blur, noise=noise)
        for name, blur, noise in (("clean", 0, 0), ("blur 1, noise 16", 1, 16), ("blur 1.5, noise 32", 1.5, 32))
    }
    for name, accuracies in measured.items():
        print(f"{name}: " + ", ".join(f"{kind} {share:.1%}" for kind, share in accuracies.items()), flush=True)
    save_recogniser(network, options.out, steps=options.steps, accuracy=measured)


if __name__ == "__main__":
    main()
