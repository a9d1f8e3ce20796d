"""Copy a reference run into the package: 16-bit weights, recogniser, curves, and the images of README and docs.

    python runs/fluent_package.py DIR

DIR is the output of runs/fluent_reference.sh. Run this in the root of the repository. It writes:

imagen/weights/emoji/              the cascade, with its settings for fast sampling
imagen/weights/recogniser-fluent/  the recogniser and the held-out prompts
imagen/weights/curves.json         the curves of the three runs
docs/images/reference-*.png        curves by preset; 32 samples of held-out prompts with seeds 0 to 31, unselected
docs/images/reference-full-*.png   PROMPTS at full size, with seeds 0 to 3
"""

import argparse
import shutil
from pathlib import Path

from imagen.cascade import Cascade
from imagen.emoji.suite import load_suite
from imagen.evaluate.compare import plot, write_reference_curves
from imagen.files import read_json, write_json
from imagen.jsonconfig import to_json
from imagen.pictures import contact_sheet, write_png
from imagen.presets import preset

RUNS = ("base_64", "sr_256", "sr_1024")
WEIGHTS, CURVES, DOCS = Path("imagen/weights"), Path("imagen/weights/curves.json"), Path("docs/images")
MAX_BYTES = 80_000_000  # of all packaged weights
SHEET = {"single": 14, "people": 10, "relation": 4, "count": 4}  # prompts of each kind on the sheet
PROMPTS = (
    "a woman astronaut with dark skin on a blue background",
    "an octopus on a purple background",
    "a man cook with light skin on a green background",
    "a rocket on a yellow background",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, metavar="DIR", help="output of runs/fluent_reference.sh")
    options = parser.parse_args()

    new = {"emoji": options.run / "cascade", "recogniser-fluent": options.run / "recogniser"}
    weights = [file for file in WEIGHTS.glob("*/*.safetensors") if file.parent.name not in new]
    weights += [file for source in new.values() for file in source.glob("*.safetensors")]
    size = sum(file.stat().st_size for file in weights)
    if size > MAX_BYTES:
        raise SystemExit(f"{size / 1e6:.1f} MB of weights exceed {MAX_BYTES / 1e6:.0f} MB; make a stage smaller")
    print(f"{WEIGHTS}: {size / 1e6:.1f} MB of weights")
    for name, source in new.items():
        for file in (WEIGHTS / name).glob("*"):
            if file.name != "README.md":  # the model card is written by hand
                file.unlink()
        shutil.copytree(source, WEIGHTS / name, dirs_exist_ok=True, ignore=shutil.ignore_patterns("README.md"))
    take_sampling_from_presets(WEIGHTS / "emoji" / "cascade.json")
    for file in WEIGHTS.glob("*/*"):
        file.chmod(0o644)  # safetensors creates files readable by the owner only, and a wheel keeps the mode
    write_reference_curves([options.run / name for name in RUNS], CURVES)
    for name, curves in read_json(CURVES).items():
        plot(name, [("reference", curves["metrics"], curves["evaluation"])], DOCS / f"reference-{name}.png")

    suite = load_suite(WEIGHTS / "recogniser-fluent")
    assert suite is not None
    prompts = [each.prompt for kind, count in SHEET.items() for each in suite.prompts[kind][:count]]
    cascade = Cascade.load(WEIGHTS / "emoji")
    images = cascade.sample(prompts, seeds=list(range(len(prompts))), batch_size=8)
    write_png(DOCS / "reference-samples.png", contact_sheet(images, prompts, columns=8, cell=160))
    for number, image in enumerate(cascade.sample(list(PROMPTS), seeds=list(range(len(PROMPTS))))):
        write_png(DOCS / f"reference-full-{number}.png", image, {"prompt": PROMPTS[number], "seed": number})


def take_sampling_from_presets(manifest: Path) -> None:
    """Replace the sampling defaults, which a run stores when it starts, with those of the current presets."""
    value = read_json(manifest)
    for stage in value["stages"]:
        stage["config"]["sampling"] = to_json(preset(stage["info"]["preset"]).stage.sampling)
    write_json(manifest, value)


if __name__ == "__main__":
    main()
