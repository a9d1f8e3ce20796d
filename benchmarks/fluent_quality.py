"""Measure the quality of a cascade of Fluent Emoji: KID at 64 and 256 pixels, and how flat its backgrounds are.

    python benchmarks/fluent_quality.py CASCADE --data SHARDS --out DIR [--n 256] [--flat 16] [--fast]

SHARDS have masters of 64 and 256 pixels that are not degraded, such as DIR/eval of `runs/fluent_reference.sh DIR`. KID
(x 1000, Inception features) compares `n` images with twice as many held-out drawings of other captions:

real        original drawings of the same captions: what a perfect model would reach
base        samples of the base stage
true        the 64-pixel drawings, upsampled by the super-resolution stage (ours) or bicubically
generated   the samples of the base, upsampled likewise

With --flat, that many held-out captions with a plain background are sampled at full size. The standard deviation of the
background, in levels of 255, is measured in the blocks of 1/16 of the width along the border, most of which the drawing
does not touch: within a block (the median over the blocks), and between their means (1.48 times the median absolute
deviation). DIR receives the figures as JSON, the images at full size, and a sheet of the base's samples, upsampled
bicubically and by the cascade. With --fast they are in DIR/fast.
"""

import argparse
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from imagen.cascade import Cascade
from imagen.data.loading.stream import dataset_batch
from imagen.data.shards.dataset import open_split
from imagen.evaluate.extractors import load_extractor
from imagen.evaluate.metrics.kernel import kid_interval
from imagen.files import read_json, write_json
from imagen.pictures import contact_sheet, write_png
from imagen.stage.inputs import to_images

Images = list[Image.Image]
BLOCKS = 16  # per side of the image


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cascade")
    parser.add_argument("--data", type=Path, required=True, help="shards with masters of 64 and 256 pixels")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--n", type=int, default=256, help="images of each kind (default: 256; 0: no KID)")
    parser.add_argument("--flat", type=int, default=16, help="images at full size (default: 16)")
    parser.add_argument("--fast", action="store_true", help="sample with the fast settings of the cascade")
    parser.add_argument("--extractor", default="inception", help="NAME or NAME:WEIGHTS (default: inception)")
    parser.add_argument("--batch-size", type=int, default=16)
    options = parser.parse_args()
    if options.fast:
        options.out = options.out / "fast"
    options.out.mkdir(parents=True, exist_ok=True)
    cascade = Cascade.load(options.cascade)
    if len(cascade.stages) < 2:
        parser.error("the cascade needs a super-resolution stage")
    if read_json(options.data / "dataset.json")["arguments"].get("degrade"):
        parser.error(f"the smallest masters of {options.data} are degraded")
    report = options.out / "quality.json"
    found = read_json(report) if report.is_file() else {}
    if options.n:
        found["kid x 1000"] = distances(cascade, options)
        write_json(report, found)
    if options.flat:
        found["background"] = flatness(cascade, options)
        write_json(report, found)


def distances(cascade: Cascade, options: argparse.Namespace) -> dict[str, dict[str, list[float]]]:
    """Return KID and its 95 % interval (value, low, high) by resolution and kind of image."""
    small, large = (stage.config.resolution for stage in cascade.stages[:2])
    n = options.n
    batch = dataset_batch(
        options.data, list(range(3 * n)), resolution=large, low_resolution=small, text=None, split="heldout"
    )
    assert batch.low_res is not None
    drawings = {small: to_images(batch.low_res), large: to_images(batch.image)}
    captions, seeds = batch.captions[:n], list(range(n))
    given = {"seeds": seeds, "batch_size": options.batch_size, "fast": options.fast}
    base = cascade.sample(captions, stages=1, **given)

    def ours(images: Images) -> Images:
        return cascade.sample(captions, stages=2, start=images, **given)

    def bicubic(images: Images) -> Images:
        return [image.resize((large, large), Image.Resampling.BICUBIC) for image in images]

    true = drawings[small][:n]
    kinds = {
        small: {"real": true, "base": base},
        large: {
            "real": drawings[large][:n],
            "true, ours": ours(true),
            "true, bicubic": bicubic(true),
            "generated, ours": ours(base),
            "generated, bicubic": bicubic(base),
        },
    }
    upsampled = zip(base, kinds[large]["generated, bicubic"], kinds[large]["generated, ours"], strict=True)
    rows = [image.resize((large, large), Image.Resampling.NEAREST) for row in upsampled for image in row][:48]
    write_png(
        options.out / "upsampled.png",
        contact_sheet(rows, ["base", "bicubic", "ours"] * (len(rows) // 3), columns=6, cell=256),
    )
    extractor = load_extractor(options.extractor)

    def features(images: Images) -> np.ndarray:
        pixels = torch.stack([torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1) for image in images])
        return np.concatenate([extractor(part).numpy() for part in pixels.split(options.batch_size)])

    values: dict[str, dict[str, list[float]]] = {}
    for resolution, images_by_kind in kinds.items():
        reference = features(drawings[resolution][n:])
        for kind, images in images_by_kind.items():
            interval = [1000 * float(value) for value in kid_interval(features(images), reference)]
            values.setdefault(str(resolution), {})[kind] = interval
            print(
                f"{resolution} {kind}: KID x 1000 {interval[0]:.1f} ({interval[1]:.1f} to {interval[2]:.1f})",
                flush=True,
            )
    return values


def flatness(cascade: Cascade, options: argparse.Namespace) -> dict[str, float]:
    """Return standard deviations of plain backgrounds at full size in levels of 255: median and maximum over images."""
    heldout = open_split(options.data, "heldout")
    captions = (heldout.caption(i) for i in range(len(heldout)))
    plain = list(islice((caption for caption in captions if "gradient" not in caption), options.flat))
    images = cascade.sample(plain, seeds=list(range(len(plain))), batch_size=1, fast=options.fast)
    for number, (caption, image) in enumerate(zip(plain, images, strict=True)):
        write_png(options.out / f"full/{number:04d}.png", image, {"prompt": caption})
    within, between = np.array([background_deviations(np.array(image.convert("RGB"))) for image in images]).T
    found = {
        "images": len(images),
        "within blocks, median": float(np.median(within)),
        "within blocks, largest": float(within.max()),
        "between blocks, median": float(np.median(between)),
        "between blocks, largest": float(between.max()),
    }
    print(", ".join(f"{name} {value:.2f}" for name, value in found.items()))
    return found


def background_deviations(pixels_HWC: np.ndarray) -> tuple[float, float]:
    """Return the standard deviations of the background within and between blocks along the border.

    Both are medians, so a drawing that touches less than half of the blocks does not matter.
    """
    side = len(pixels_HWC) // BLOCKS
    blocks = pixels_HWC.reshape(BLOCKS, side, BLOCKS, side, 3).swapaxes(1, 2).astype(np.float64)
    border = np.concatenate([blocks[0], blocks[-1], blocks[1:-1, 0], blocks[1:-1, -1]])  # [60, side, side, 3]
    within = np.sqrt(border.var(axis=(1, 2)).mean(axis=1))
    means = border.mean(axis=(1, 2))
    absolute = np.median(np.abs(means - np.median(means, axis=0)), axis=0)  # per channel
    return float(np.median(within)), float(1.4826 * np.sqrt((absolute**2).mean()))


if __name__ == "__main__":
    main()
