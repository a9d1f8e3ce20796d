"""Copy a reference run into the package: 16-bit weights, curves, and the images of README and docs.

    python runs/emoji_package.py DIR

DIR is the output of runs/emoji_reference.sh. Run this in the root of the repository. It writes:

imagen/weights/emoji/       the cascade
imagen/weights/curves.json  the curves of the three runs
docs/images/reference-*.png  curves by preset; 64 samples of held-out prompts, after one super-resolution stage
"""

import argparse
from pathlib import Path

from imagen.cascade import Cascade, assemble
from imagen.cascade.float16 import convert_to_float16
from imagen.emoji.dataset import heldout_counts, heldout_prompts, heldout_relations
from imagen.evaluate.compare import plot, write_reference_curves
from imagen.files import read_json, write_json
from imagen.jsonconfig import to_json
from imagen.pictures import contact_sheet, write_png
from imagen.presets import preset

RUNS = ("base", "sr_256", "sr_1024")
WEIGHTS, CURVES, DOCS = Path("imagen/weights/emoji"), Path("imagen/weights/curves.json"), Path("docs/images")
MAX_BYTES = 40_000_000  # of the weights


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, metavar="DIR", help="output of runs/emoji_reference.sh")
    options = parser.parse_args()
    runs = [options.run / name for name in RUNS]

    assemble(runs, WEIGHTS)
    take_sampling_from_presets(WEIGHTS / "cascade.json")
    size = convert_to_float16(WEIGHTS)
    for file in WEIGHTS.iterdir():
        file.chmod(0o644)  # safetensors creates files readable by the owner only, and a wheel keeps the mode
    print(f"{WEIGHTS}: {size / 1e6:.2f} MB of weights")
    if size > MAX_BYTES:
        raise SystemExit(f"the weights exceed {MAX_BYTES / 1e6:.0f} MB; make a stage smaller")
    write_reference_curves(runs, CURVES)
    for name, curves in read_json(CURVES).items():
        plot(name, [("reference", curves["metrics"], curves["evaluation"])], DOCS / f"reference-{name}.png")

    heldout = [*heldout_prompts(48), *heldout_relations(8), *heldout_counts(8)]
    prompts, seeds = [each.prompt for each in heldout], list(range(len(heldout)))
    images = Cascade.load(WEIGHTS).sample(prompts, seeds=seeds, stages=2)
    write_png(DOCS / "reference-samples.png", contact_sheet(images, prompts, columns=8, cell=128).quantize(256))


def take_sampling_from_presets(manifest: Path) -> None:
    """Replace the sampling defaults, which a run stores when it starts, with those of the current presets."""
    value = read_json(manifest)
    for stage in value["stages"]:
        stage["config"]["sampling"] = to_json(preset(stage["info"]["preset"]).stage.sampling)
    write_json(manifest, value)


if __name__ == "__main__":
    main()
