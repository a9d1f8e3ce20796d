"""Train the recogniser of Fluent Emoji on the original drawings, and measure it on held-out combinations.

    python -m imagen.emoji.fluent.recogniser --icons ICONS.JSON --names EMOJIBASE-DATA --out FOLDER

Its classes are the names of things, such as "octopus", and the combinations of role, gender and skin tone of people,
such as "astronaut/woman/dark". FOLDER also receives the held-out prompts for `imagen evaluate-emoji --recogniser
FOLDER`. The same command resumes; after the end of training it only measures the accuracy and writes the prompts again.
"""

import argparse
import random
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from imagen.emoji.alignment import evaluate
from imagen.emoji.fluent.background import draw_background
from imagen.emoji.fluent.catalogue import Drawing
from imagen.emoji.fluent.scene import Scene
from imagen.emoji.fluent.selection import Selection, add_options, selection
from imagen.emoji.fluent.sprites import cropped_sprite
from imagen.emoji.fluent.suite import fluent_suite, heldout_scenes, prompt
from imagen.emoji.picture import PALETTE
from imagen.emoji.recogniser import CONFIG, SIDE, Recogniser, load_recogniser
from imagen.emoji.recogniser_training import (
    CHECKPOINT,
    blur_with_noise,
    delete_checkpoint,
    save_recogniser,
    train_recogniser,
)
from imagen.errors import UserError, exit_on_user_error
from imagen.files import read_json, write_json


def background(rng: random.Random) -> Image.Image:
    """Return a background of 64 x 64 pixels, plain or a gradient, with a colour near one of the palette."""
    pixels = draw_background(rng, rng.choice(list(PALETTE))).pixels(SIDE)
    shift = np.array([rng.gauss(0, 12) for _ in range(3)], dtype=np.float32)
    return Image.fromarray((pixels + shift).round().clip(0, 255).astype(np.uint8))


def drawings(selected: Selection) -> list[Drawing]:
    """Return one drawing per class: per name of a thing, and per combination of role, gender and tone."""
    return list({each.combination: each for each in (*selected.things(), *selected.people())}.values())


def accuracy(
    network: Recogniser, scenes: Mapping[str, Sequence[Scene]], *, blur: float = 0.0, noise: float = 0.0
) -> dict[str, dict[str, float]]:
    """Return the accuracies on drawings of `scenes`, by kind (`imagen.emoji.alignment.accuracies`).

    blur, noise: added to the images, in pixels and in levels of 255.
    """
    rng = np.random.default_rng(0)
    prompts = {kind: [prompt(scene) for scene in chosen] for kind, chosen in scenes.items()}
    images = {kind: [Image.fromarray(scene.pixels(SIDE)) for scene in chosen] for kind, chosen in scenes.items()}
    if blur or noise:
        images = {kind: [blur_with_noise(image, rng, blur, noise) for image in drawn] for kind, drawn in images.items()}
    return evaluate(network, prompts, images)[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser)
    parser.add_argument("--out", type=Path, required=True, help="folder for the recogniser")
    parser.add_argument("--steps", type=int, default=8000)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--n", type=int, default=384, help="drawings of each kind to measure its accuracy")
    parser.add_argument("--prompts", type=int, default=128, help="prompts of each kind to evaluate cascades")
    options = parser.parse_args()
    selected = selection(options)
    if not (options.out / CONFIG).is_file():
        sprites = {each.combination: cropped_sprite(selected.source.icons, each.icon) for each in drawings(selected)}
        network = train_recogniser(
            sprites,
            background=background,
            steps=options.steps,
            width=options.width,
            checkpoint=options.out / CHECKPOINT,
        )
        save_recogniser(network, options.out, steps=options.steps)
    delete_checkpoint(options.out)  # remains if the command was killed after it had saved the recogniser
    network = load_recogniser(options.out)
    if set(network.names) != {each.combination for each in drawings(selected)}:
        raise UserError(f"the recogniser in {options.out} is of other drawings; choose another folder or delete it")
    fluent_suite(network, selected, options.prompts).save(options.out)
    scenes = heldout_scenes(selected, options.n, "recogniser")
    measured = {
        name: accuracy(network, scenes, blur=blur, noise=noise)
        for name, blur, noise in (("clean", 0, 0), ("blur 1, noise 16", 1, 16), ("blur 1.5, noise 32", 1.5, 32))
    }
    for name, accuracies in measured.items():
        for kind, shares in accuracies.items():
            right = ", ".join(f"{key} {value:.1%}" for key, value in shares.items())
            print(f"{name}, {kind} ({len(scenes[kind])}): {right}", flush=True)
    write_json(options.out / CONFIG, {**read_json(options.out / CONFIG), "accuracy": measured})


if __name__ == "__main__":
    with exit_on_user_error():
        main()
