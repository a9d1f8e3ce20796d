"""Copy a reference run on Fluent Emoji into the package: 16-bit weights, recogniser, curves, and images for the docs.

    python runs/fluent_package.py DIR

DIR is the output of runs/fluent_reference.sh. Run this in the root of the repository. It writes:

imagen/weights/emoji/              the cascade with its fast settings
imagen/weights/recogniser-fluent/  the recogniser with the held-out prompts
imagen/weights/curves.json         the curves of the three runs
docs/images/reference-*.png        curves by preset; 32 held-out prompts; crops at full size beside the drawings
docs/images/reference-full-*.png   four samples at full size
"""

import argparse
import shutil
from collections.abc import Iterable
from pathlib import Path

from PIL import Image

from imagen.cascade import Cascade
from imagen.cascade.float16 import convert_to_float16
from imagen.data.loading.stream import dataset_batch
from imagen.emoji.suite import KINDS, load_suite
from imagen.evaluate.compare import plot, write_reference_curves
from imagen.files import read_json
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

    emoji, recogniser = PACKAGE / "emoji", PACKAGE / "recogniser-fluent"
    copy_files(run / "cascade", emoji, ("*.json", "*.safetensors"))
    copy_files(run / "recogniser", recogniser, ("*.json", "*.safetensors"))
    convert_to_float16(emoji)
    size = sum(file.stat().st_size for file in PACKAGE.rglob("*.safetensors"))
    print(f"{PACKAGE}: {size / 1e6:.1f} MB of weights")
    if size > MAX_BYTES:
        raise SystemExit(f"the weights exceed {MAX_BYTES / 1e6:.0f} MB; make a stage smaller")

    write_reference_curves([run / name for name in RUNS], PACKAGE / "curves.json")
    for name, curves in read_json(PACKAGE / "curves.json").items():
        plot(name, [("reference", curves["metrics"], curves["evaluation"])], DOCS / f"reference-{name}.png")

    cascade = Cascade.load(emoji)
    write_png(DOCS / "reference-samples.png", sheet(cascade, recogniser).quantize(256))
    for number, prompt in enumerate(FULL):
        write_png(DOCS / f"reference-full-{number}.png", cascade.sample([prompt], seeds=0)[0].quantize(256))
    write_png(DOCS / "reference-crops.png", crops(cascade, run / "eval"))


def copy_files(source: Path, target: Path, patterns: Iterable[str]) -> None:
    """Replace the files of `target` that match `patterns` by those of `source`; other files, such as a card, stay."""
    target.mkdir(exist_ok=True)
    for pattern in patterns:
        for file in target.glob(pattern):
            file.unlink()
        for file in source.glob(pattern):
            shutil.copyfile(file, target / file.name)  # not its mode: safetensors' files are readable by the owner only


def sheet(cascade: Cascade, recogniser: Path) -> Image.Image:
    """Return samples of the first held-out prompts of each kind at 256 pixels: seeds 0, 1, ..., none left out."""
    suite = load_suite(recogniser)
    assert suite is not None
    prompts = [each.prompt for kind in KINDS for each in suite.prompts[kind][: SHEET[kind]]]
    images = cascade.sample(prompts, seeds=list(range(len(prompts))), stages=2)
    captions = [f"{prompt} ({seed})" for seed, prompt in enumerate(prompts)]
    return contact_sheet(images, captions, columns=8, cell=160)


def crops(cascade: Cascade, shards: Path) -> Image.Image:
    """Return the centres of samples at full size, each beside that of the original drawing of its caption."""
    batch = dataset_batch(shards, list(range(CROPS)), resolution=1024, text=None, split="heldout")
    samples = cascade.sample(batch.captions, seeds=list(range(CROPS)), batch_size=1)
    box = (512 - CROP // 2, 512 - CROP // 2, 512 + CROP // 2, 512 + CROP // 2)
    pairs = [image.crop(box) for pair in zip(samples, to_images(batch.image), strict=True) for image in pair]
    captions = [text for caption in batch.captions for text in (caption, "the drawing")]
    return contact_sheet(pairs, captions, columns=4, cell=CROP)


if __name__ == "__main__":
    main()
