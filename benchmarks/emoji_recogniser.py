"""Measure the accuracy of the emoji recogniser on held-out drawings, clean and degraded.

    python benchmarks/emoji_recogniser.py

`imagen evaluate-emoji` scores emoji models with this recogniser. Here it classifies images rendered from the drawings,
with combinations of object and colour, pairs and counts that are in no training set. The images are evaluated
unchanged, and with blur and noise like those of generated images.
"""

import argparse
import io

import numpy as np
from PIL import Image

from imagen.emoji.alignment import evaluate
from imagen.emoji.dataset import HeldoutPrompt, compose, heldout_colour
from imagen.emoji.picture import Picture
from imagen.emoji.recogniser import load_recogniser
from imagen.emoji.recogniser_training import blur_with_noise
from imagen.emoji.scene import Scene, groups, pairs
from imagen.emoji.single import Composition, objects


def prompt_of(picture: Picture) -> HeldoutPrompt:
    """Return the prompt that describes this image."""
    first, last = picture.placed[0].emoji.name, picture.placed[-1].emoji.name
    if isinstance(picture, Composition):
        return HeldoutPrompt(picture.caption, picture.colour, first)
    assert isinstance(picture, Scene)
    if picture.relation is None:
        return HeldoutPrompt(picture.caption, picture.colour, first, number=len(picture.placed))
    return HeldoutPrompt(picture.caption, picture.colour, first, relation=picture.relation, other=last)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recogniser", help="folder of the recogniser (default: the packaged one)")
    parser.add_argument("--objects", type=int, default=96, help="number of objects (default: 96)")
    parser.add_argument("--n", type=int, default=384, help="number of scenes per kind (default: 384)")
    options = parser.parse_args()
    recogniser, usual = load_recogniser(options.recogniser), objects(options.objects)
    kinds: dict[str, list[Picture]] = {
        "single": [compose(emoji, heldout_colour(emoji), variant) for emoji in usual for variant in range(4)],
        "relation": [*pairs(usual, options.n, heldout=True)],
        "count": [*groups(usual, options.n, heldout=True)],
    }
    prompts = {kind: [prompt_of(picture) for picture in pictures] for kind, pictures in kinds.items()}
    clean = {kind: [Image.open(io.BytesIO(p.render(64))) for p in pictures] for kind, pictures in kinds.items()}
    for blur, noise in ((0.0, 0.0), (1.0, 16.0), (1.5, 32.0)):
        rng = np.random.default_rng(0)
        pictures = {kind: [blur_with_noise(each, rng, blur, noise) for each in clean[kind]] for kind in clean}
        found, _ = evaluate(recogniser, prompts, pictures)
        print(f"blur {blur:g} pixels, noise {noise:g} of 255:")
        for kind, shares in found.items():
            right = ", ".join(f"{key} {value:.1%}" for key, value in shares.items())
            print(f"  {kind} ({len(prompts[kind])}): {right}")


if __name__ == "__main__":
    main()
