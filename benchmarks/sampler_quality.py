"""Measure the quality of samplers: KID as a function of network evaluations per image.

    python benchmarks/sampler_quality.py draw emoji --data SHARDS --out DIR --sampler dpmpp_2m --steps 20
    python benchmarks/sampler_quality.py score --data SHARDS --out DIR --plot docs/images/samplers.png

draw: samples images for captions at even distances in the training split. Image i has seed i with every sampler.
Running it again resumes an interrupted run; ranks of torchrun share the work.
score: prints a line per folder in DIR: the KID of its images to the training drawings that have other captions, with
a standard deviation estimated from random halves of the images. Features are those of EfficientNet-Lite0
(`imagen.evaluate.features`), not Inception.
"""

import argparse
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import imagen
from imagen.cascade import write_samples
from imagen.data.loading.stream import dataset_batch
from imagen.data.shards.dataset import open_split
from imagen.evaluate.features import load_classifier, picture_features
from imagen.evaluate.metrics.kernel import kid
from imagen.stage.inputs import to_images


def caption_indices(data: str, n: int) -> list[int]:
    """Return the indices of the training samples that provide the captions."""
    total = len(open_split(data, "train"))
    return [i * total // n for i in range(n)]


def draw(options: argparse.Namespace) -> None:
    """Sample the images of one sampler."""
    cascade = imagen.load(options.cascade, stages=1)
    stage = cascade.stages[0].config
    captions = dataset_batch(
        options.data, caption_indices(options.data, options.n), resolution=stage.resolution, split="train"
    ).captions
    settings = replace(stage.sampling, sampler=options.sampler, steps=options.steps, spacing=options.spacing)
    name = options.sampler if options.spacing == "auto" else f"{options.sampler}-{options.spacing}"
    for field in ("guidance", "damping"):
        if (value := getattr(options, field)) is not None:
            settings = replace(settings, **{field: value})
            name += f"-{field}-{value:g}"
    write_samples(
        cascade,
        captions,
        Path(options.out) / f"{name}-{options.steps}",
        seed=list(range(options.n)),
        settings=[settings],
        batch_size=16,
        precision=options.precision,
        rank=int(os.environ.get("RANK", 0)),
        ranks=int(os.environ.get("WORLD_SIZE", 1)),
        progress=False,
    )


def evaluations(folder: Path) -> int:
    """Return the number of network evaluations per image of DIR/NAME-STEPS."""
    steps = int(folder.name.rsplit("-", 1)[1])
    return 2 * steps - 1 if folder.name.startswith("heun") else steps


def real_features(options: argparse.Namespace, network) -> tuple[np.ndarray, np.ndarray]:
    """Return the features of the drawings that provide the captions, and of all others."""
    used = caption_indices(options.data, options.n)
    others = sorted(set(range(len(open_split(options.data, "train")))) - set(used))
    return tuple(
        np.concatenate(
            [
                picture_features(
                    network, to_images(dataset_batch(options.data, part, resolution=64, split="train").image)
                )
                for part in (indices[begin : begin + 256] for begin in range(0, len(indices), 256))
            ]
        )
        for indices in (used, others)
    )  # type: ignore[return-value]


def kid_deviation(features: np.ndarray, reference: np.ndarray, repeats: int = 10) -> float:
    """Estimate the standard deviation of the KID of all images from that of random halves."""
    random = np.random.default_rng(0)
    half = len(features) // 2
    values = [kid(features[random.permutation(len(features))[:half]], reference) for _ in range(repeats)]
    return float(np.std(values) / 2**0.5)


def score(options: argparse.Namespace) -> None:
    """Print the KID of each folder, and plot it."""
    network = load_classifier()
    same, reference = real_features(options, network)
    rows = [("original drawings", 0, len(same), kid(same, reference), kid_deviation(same, reference))]
    for folder in sorted(
        Path(options.out).iterdir(), key=lambda path: (path.name.rsplit("-", 1)[0], evaluations(path))
    ):
        files = sorted(folder.glob("[0-9]*.png"))
        cache = folder / "features.npy"
        if cache.exists() and len(np.load(cache)) == len(files):
            features = np.load(cache)
        else:
            features = picture_features(network, [Image.open(file).convert("RGB") for file in files])
            np.save(cache, features)
        sampler = folder.name.rsplit("-", 1)[0]
        rows.append(
            (sampler, evaluations(folder), len(files), kid(features, reference), kid_deviation(features, reference))
        )
    for name, count, images, value, deviation in rows:
        print(f"{name:>20} {count:4} evaluations {images:5} images  KID {value:.4f} +- {deviation:.4f}", flush=True)
    if options.plot:
        plot(rows, options.plot)


def plot(rows: list[tuple[str, int, int, float, float]], path: str) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4.2), layout="constrained")
    for name in dict.fromkeys(row[0] for row in rows[1:]):
        points = [row for row in rows if row[0] == name]
        x, y, error = ([row[i] for row in points] for i in (1, 3, 4))
        axes.errorbar(x, y, error, marker="o", capsize=3, label=name)
    axes.axhline(rows[0][3], color="gray", linestyle=":", label="original drawings")
    axes.set(xscale="log", xlabel="network evaluations per image", ylabel="KID (EfficientNet-Lite0)")
    axes.legend()
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("draw", "score"))
    parser.add_argument("cascade", nargs="?", help="for draw: a cascade or a training run")
    parser.add_argument("--data", required=True)
    parser.add_argument("--out", required=True)
    parser.add_argument("--n", type=int, default=1000)
    parser.add_argument("--sampler", default="dpmpp_2m")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--spacing", default="auto")
    parser.add_argument("--guidance", type=float, help="guidance scale (default: the stage's own)")
    parser.add_argument("--damping", type=float, help="default: the stage's own")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--plot", help="for score: PNG file to write")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    draw(options) if options.what == "draw" else score(options)


if __name__ == "__main__":
    main()
