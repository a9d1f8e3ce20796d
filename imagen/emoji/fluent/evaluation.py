"""Evaluate a cascade of Fluent Emoji on held-out prompts with the recogniser.

python -m imagen.emoji.fluent.evaluation CASCADE --recogniser FOLDER --icons ICONS.JSON --names EMOJIBASE-DATA
"""

import argparse
import json
from pathlib import Path
from typing import Any

from PIL import Image

from imagen.cascade import Cascade
from imagen.emoji.alignment import evaluate
from imagen.emoji.fluent import captions
from imagen.emoji.fluent.background import Background
from imagen.emoji.fluent.dataset import scenes
from imagen.emoji.fluent.heldout import heldout_colour, is_heldout_person
from imagen.emoji.fluent.scene import Scene
from imagen.emoji.fluent.selection import Selection, add_options, selection
from imagen.emoji.picture import hashed
from imagen.emoji.prompts import HeldoutPrompt
from imagen.emoji.recogniser import SIDE, Recogniser, load_recogniser
from imagen.evaluate.metrics.kernel import kid
from imagen.pictures import contact_sheet, write_png

KINDS = ("single", "people", "relation", "count")
PARTS = ("role", "gender", "tone")


def suite(selected: Selection, n: int) -> dict[str, list[Scene]]:
    """Return at most `n` held-out scenes of each kind.

    single: a thing on the background colour that is held out for it
    people: a held-out combination of role, gender and skin tone
    relation: a held-out pair of things
    count: several copies of a thing, in the number that is held out for it
    """
    heldout = scenes(
        selected.things(),
        [each for each in selected.people() if is_heldout_person(each)],
        selected.source.icons,
        variants=1,
        people_variants=1,
        relations=0.3,
        counts=0.3,
        seed=hashed("evaluation") % 2**32,
        heldout=True,
    )
    found: dict[str, list[Scene]] = {kind: [] for kind in KINDS}
    for scene in heldout:
        drawing = scene.placed[0].drawing
        if scene.relation is not None:
            kind = "relation"
        elif len(scene.placed) > 1:
            kind = "count"
        elif drawing.role is None:
            kind = "single"
        elif is_heldout_person(drawing) and scene.background.colour != heldout_colour(drawing):
            kind = "people"
        else:
            continue
        if len(found[kind]) < n and scene.size == "":
            found[kind].append(scene)
    return found


def prompt(scene: Scene) -> HeldoutPrompt:
    """Return the plain caption of a scene on a plain background, with the properties that its image must have."""
    background, first = Background(colour=scene.background.colour), scene.placed[0].drawing
    if scene.relation is not None:
        last = scene.placed[-1].drawing
        text = captions.pair(first, last, scene.relation, background)
        return HeldoutPrompt(
            text, background.colour, first.combination, relation=scene.relation, other=last.combination
        )
    if (number := len(scene.placed)) > 1:
        text = captions.group(first, number, background)
        return HeldoutPrompt(text, background.colour, first.combination, number=number)
    return HeldoutPrompt(captions.single(first, background), background.colour, first.combination)


def scores(
    cascade: Cascade,
    recogniser: Recogniser,
    scenes_by_kind: dict[str, list[Scene]],
    *,
    guidance: float | None = None,
    steps: int | None = None,
    stages: int = 1,
    batch_size: int = 16,
) -> tuple[dict[str, Any], dict[str, list[Image.Image]]]:
    """Sample the plain caption of each scene with seeds 0, 1, ...; return the accuracies and the images.

    The accuracies are those of `imagen.emoji.alignment.accuracies`. "people" also has "role", "gender" and "tone".
    "kid" is the kernel distance of the images of things and people from original drawings of the same prompts, on the
    recogniser's features, each scaled by its standard deviation.
    """
    prompts = {kind: [prompt(scene) for scene in chosen] for kind, chosen in scenes_by_kind.items() if chosen}
    images = {
        kind: [
            # The recogniser takes 64 pixels as input; smaller images are upsampled smoothly.
            image.resize((SIDE, SIDE), Image.Resampling.BICUBIC) if image.width < SIDE else image
            for image in cascade.sample(
                [each.prompt for each in chosen],
                seeds=list(range(len(chosen))),
                stages=stages,
                guidance=guidance,
                steps=steps,
                batch_size=batch_size,
            )
        ]
        for kind, chosen in prompts.items()
    }
    accuracies, _ = evaluate(recogniser, prompts, images)
    if "people" in images:
        detected = [detections[0].name.split("/") for detections in recogniser.detect(images["people"])]
        expected = [each.object.split("/") for each in prompts["people"]]
        for index, part in enumerate(PARTS):
            same = [a[index : index + 1] == b[index : index + 1] for a, b in zip(detected, expected, strict=True)]
            accuracies["people"][part] = sum(same) / len(same)
    sampled = [image for kind in ("single", "people") for image in images.get(kind, [])]
    real = [Image.fromarray(scene.pixels(SIDE)) for kind in ("single", "people") for scene in scenes_by_kind[kind]]
    if len(sampled) > 1:
        features = recogniser.embed(real)
        mean, std = features.mean(axis=0), features.std(axis=0) + 1e-6
        accuracies["kid"] = kid((recogniser.embed(sampled) - mean) / std, (features - mean) / std)
    return accuracies, images


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cascade", help="cascade folder or training run")
    parser.add_argument("--recogniser", type=Path, required=True, help="folder of the recogniser")
    add_options(parser)
    parser.add_argument("--n", type=int, default=64, help="prompts of each kind")
    parser.add_argument("--guidance", type=float, nargs="*", default=[], help="guidance scales to evaluate")
    parser.add_argument("--steps", type=int)
    parser.add_argument("--kinds", nargs="*", default=list(KINDS), choices=KINDS)
    parser.add_argument("--out", type=Path, help="write a sheet of the images for each guidance scale")
    options = parser.parse_args()
    chosen = suite(selection(options), options.n)
    scenes_by_kind = {kind: chosen[kind] if kind in options.kinds else [] for kind in KINDS}
    cascade, recogniser = Cascade.load(options.cascade), load_recogniser(options.recogniser)
    for scale in options.guidance or [None]:
        accuracies, images = scores(cascade, recogniser, scenes_by_kind, guidance=scale, steps=options.steps)
        print(json.dumps({"guidance": scale, **accuracies}), flush=True)
        if options.out:
            shown = [image for kind in images for image in images[kind]]
            captioned = [prompt(scene).prompt for kind in images for scene in scenes_by_kind[kind]]
            sheet = contact_sheet(shown, captioned)
            write_png(options.out / f"guidance-{scale or 'default'}.png", sheet, accuracies)


if __name__ == "__main__":
    main()
