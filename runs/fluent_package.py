"""Copy a reference run on Fluent Emoji into the package: 16-bit weights, recogniser, curves, and images for the docs.

    python runs/fluent_package.py DIR

DIR is the output of runs/fluent_reference.sh. Run this in the root of the repository. It writes:

imagen/weights/emoji/              the cascade with its fast settings
imagen/weights/recogniser-fluent/  the recogniser with the held-out prompts
imagen/weights/curves.json         the curves of the three runs
docs/images/reference-*.png        curves by preset; 32 held-out prompts; crops at full size beside the drawings
docs/images/reference-full-*.png   four samples at full size

The model card, imagen/weights/emoji/README.md, and the licences in pyproject.toml are written by hand.
"""

import argparse
import json
import shutil
import tempfile
from itertools import islice
from pathlib import Path

from PIL import Image

from imagen.cascade import Cascade, assemble
from imagen.cascade.float16 import convert_to_float16
from imagen.data.loading.stream import dataset_batch
from imagen.data.shards.dataset import open_split
from imagen.emoji.recogniser import CONFIG, WEIGHTS
from imagen.emoji.suite import FEATURES, KINDS, PROMPTS, Suite, load_suite
from imagen.errors import UserError, exit_on_user_error
from imagen.evaluate.compare import plot, reference_curves, write_reference_curves
from imagen.files import read_json, write_json
from imagen.pictures import contact_sheet, write_png
from imagen.stage.inputs import to_images

RUNS = ("base_64", "sr_256", "sr_1024")
PACKAGE, DOCS = Path("imagen/weights"), Path("docs/images")
MAX_BYTES = 80_000_000  # of all weights
SHEET = {"single": 14, "people": 10, "count": 4, "relation": 4}  # prompts of each kind on the sheet
FULL = (  # samples at full size, seed 0
    "a woman astronaut with dark skin on a blue background",
    "a lion on a green background",
    "a rocket on a purple background",
    "a pizza on an orange background",
)
CROPS, CROP = 4, 256  # crops at full size, and their sides in pixels


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, metavar="DIR", help="output of runs/fluent_reference.sh")
    run = parser.parse_args().run
    suite = load_suite(run / "recogniser")  # raises UserError for a DIR without one, before anything is replaced
    if suite is None:
        raise UserError(f"{run / 'recogniser'} has no held-out prompts; run runs/fluent_reference.sh {run} again")
    centred = usual_singles(run / "eval", CROPS)

    emoji, recogniser = PACKAGE / "emoji", PACKAGE / "recogniser-fluent"
    with tempfile.TemporaryDirectory() as folder:
        assemble([run / "cascade"], folder)
        size = convert_to_float16(folder)
        size += sum(file.stat().st_size for file in (run / "recogniser").glob("*.safetensors"))
        size += sum(file.stat().st_size for file in PACKAGE.glob("recogniser-openmoji/*.safetensors"))
        print(f"{size / 1e6:.1f} MB of weights")
        if size > MAX_BYTES:
            raise UserError(f"the weights exceed {MAX_BYTES / 1e6:.0f} MB; make a stage smaller")
        assemble([folder], emoji)
    recogniser.mkdir(exist_ok=True)
    for name in (CONFIG, WEIGHTS, PROMPTS, FEATURES):
        shutil.copyfile(run / "recogniser" / name, recogniser / name)

    others = reference_curves()
    write_reference_curves([run / name for name in RUNS], PACKAGE / "curves.json")
    ours = read_json(PACKAGE / "curves.json")
    write_json(PACKAGE / "curves.json", {**others, **ours})
    for name, curves in ours.items():
        plot(name, [("reference", curves["metrics"], curves["evaluation"])], DOCS / f"reference-{name}.png")

    cascade = Cascade.load(emoji)
    write_png(DOCS / "reference-samples.png", sheet(cascade, suite).quantize(256))
    for number, prompt in enumerate(FULL):
        write_png(DOCS / f"reference-full-{number}.png", cascade.sample([prompt], seeds=0)[0].quantize(256))
    write_png(DOCS / "reference-crops.png", crops(cascade, run / "eval", centred))


def usual_singles(shards: Path, count: int) -> list[int]:
    """Return the first held-out samples of one drawing in its usual size, which covers the centre of the image."""
    heldout = open_split(shards, "heldout")
    about = (json.loads(heldout.read(i, "json")) for i in range(len(heldout)))
    return list(islice((i for i, each in enumerate(about) if each.get("size") == "usual"), count))


def sheet(cascade: Cascade, suite: Suite) -> Image.Image:
    """Return samples of the first held-out prompts of each kind at 256 pixels: seeds 0, 1, ..., none left out."""
    prompts = [each.prompt for kind in KINDS for each in suite.prompts[kind][: SHEET[kind]]]
    images = cascade.sample(prompts, seeds=list(range(len(prompts))), stages=2)
    captions = [f"{prompt} ({seed})" for seed, prompt in enumerate(prompts)]
    return contact_sheet(images, captions, columns=8, cell=160)


def crops(cascade: Cascade, shards: Path, indices: list[int]) -> Image.Image:
    """Return the centres of samples at full size, each beside that of the original drawing of its caption."""
    batch = dataset_batch(shards, indices, resolution=1024, text=None, split="heldout")
    samples = cascade.sample(batch.captions, seeds=list(range(len(indices))), batch_size=1)
    box = (512 - CROP // 2, 512 - CROP // 2, 512 + CROP // 2, 512 + CROP // 2)
    pairs = [image.crop(box) for pair in zip(samples, to_images(batch.image), strict=True) for image in pair]
    captions = [text for caption in batch.captions for text in (caption, "the drawing")]
    return contact_sheet(pairs, captions, columns=4, cell=CROP)


if __name__ == "__main__":
    with exit_on_user_error():
        main()
