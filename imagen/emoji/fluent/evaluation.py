"""Judge a cascade of Fluent Emoji on prompts that training never showed, by the recogniser.

python -m imagen.emoji.fluent.evaluation CASCADE --recogniser FOLDER --icons ICONS.JSON --names EMOJIBASE-DATA
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from imagen.cascade import Cascade
from imagen.emoji.alignment import evaluate
from imagen.emoji.fluent import captions
from imagen.emoji.fluent.background import Background
from imagen.emoji.fluent.catalogue import Source, people
from imagen.emoji.fluent.dataset import choose_things, scenes
from imagen.emoji.fluent.heldout import heldout_colour, is_heldout_person
from imagen.emoji.fluent.scene import Scene
from imagen.emoji.picture import hashed
from imagen.emoji.prompts import HeldoutPrompt
from imagen.emoji.recogniser import SIDE, Recogniser, load_recogniser
from imagen.evaluate.metrics.kernel import kid
from imagen.pictures import contact_sheet, write_png

KINDS = ("single", "people", "relation", "count")
PARTS = ("role", "gender", "tone")


def suite(source: Source, n: int, words: int = 2, roles: Sequence[str] = ("person-role",)) -> dict[str, list[Scene]]:
    """At most `n` held-out scenes of each kind, with their plain captions on plain backgrounds.

    single: a thing on the colour that it was never shown on; people: a combination of role, gender and skin tone that
    was never shown; relation: two things that were never shown together; count: a number that was never shown of it.
    """
    things, persons = choose_things(source, words), [each for each in people(source, roles) if is_heldout_person(each)]
    whole = scenes(
        things,
        persons,
        source.icons,
        variants=1,
        people_variants=1,
        relations=0.3,
        counts=0.3,
        seed=hashed("evaluation") % 2**32,
        heldout=True,
    )
    found: dict[str, list[Scene]] = {kind: [] for kind in KINDS}
    for scene in whole:
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
    """The plain caption of a scene, and what a picture of it has to show."""
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
    asked: dict[str, list[Scene]],
    *,
    guidance: float | None = None,
    steps: int | None = None,
    stages: int = 1,
    batch_size: int = 16,
) -> tuple[dict[str, Any], dict[str, list[Image.Image]]]:
    """Draw the plain caption of each scene, seeds 0, 1, ...; return shares of what is right, and the pictures.

    "people" has shares of "role", "gender" and "tone", too. "kid": the kernel distance of the pictures of things and
    people from real drawings of the same prompts, on the recogniser's features, scaled by their deviations.
    """
    prompts = {kind: [prompt(scene) for scene in chosen] for kind, chosen in asked.items() if chosen}
    pictures = {
        kind: [
            # The recogniser looks at 64 pixels; smaller pictures are enlarged smoothly.
            picture.resize((SIDE, SIDE), Image.Resampling.BICUBIC) if picture.width < SIDE else picture
            for picture in cascade.sample(
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
    found, _ = evaluate(recogniser, prompts, pictures)
    if "people" in pictures:
        seen = [names[0].name.split("/") for names in recogniser.detect(pictures["people"])]
        wanted = [each.object.split("/") for each in prompts["people"]]
        for index, part in enumerate(PARTS):
            same = [a[index : index + 1] == b[index : index + 1] for a, b in zip(seen, wanted, strict=True)]
            found["people"][part] = sum(same) / len(same)
    drawn = [picture for kind in ("single", "people") for picture in pictures.get(kind, [])]
    real = [Image.fromarray(scene.pixels(SIDE)) for kind in ("single", "people") for scene in asked[kind]]
    if len(drawn) > 1:
        features = recogniser.embed(real)
        mean, std = features.mean(axis=0), features.std(axis=0) + 1e-6
        found["kid"] = kid((recogniser.embed(drawn) - mean) / std, (features - mean) / std)
    return found, pictures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cascade")
    parser.add_argument("--recogniser", type=Path, required=True)
    parser.add_argument("--icons", type=Path, required=True)
    parser.add_argument("--names", type=Path, required=True)
    parser.add_argument("--n", type=int, default=64, help="prompts of each kind")
    parser.add_argument("--words", type=int, default=2, help="things whose names have at most so many words")
    parser.add_argument("--roles", nargs="*", default=["person-role"])
    parser.add_argument("--guidance", type=float, nargs="*", default=[])
    parser.add_argument("--steps", type=int)
    parser.add_argument("--kinds", nargs="*", default=list(KINDS), choices=KINDS)
    parser.add_argument("--out", type=Path, help="folder for a sheet of the pictures of each weight")
    options = parser.parse_args()
    source = Source(str(options.icons.resolve()), str(options.names.resolve()))
    chosen = suite(source, options.n, options.words, options.roles)
    asked = {kind: chosen[kind] if kind in options.kinds else [] for kind in KINDS}
    cascade, recogniser = Cascade.load(options.cascade), load_recogniser(options.recogniser)
    for weight in options.guidance or [None]:
        found, pictures = scores(cascade, recogniser, asked, guidance=weight, steps=options.steps)
        print(json.dumps({"guidance": weight, **found}), flush=True)
        if options.out:
            shown = [picture for kind in pictures for picture in pictures[kind]]
            texts = [prompt(scene).prompt for kind in pictures for scene in asked[kind]]
            write_png(options.out / f"guidance-{weight or 'default'}.png", contact_sheet(shown, texts), found)


if __name__ == "__main__":
    main()
