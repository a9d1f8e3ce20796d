"""Quality against network calls for each sampler: KID of pictures of training captions against the other real drawings.

    python benchmarks/sampler_quality.py draw emoji --data SHARDS --out DIR --sampler dpmpp_2m --steps 20
    python benchmarks/sampler_quality.py score --data SHARDS --out DIR --plot docs/images/samplers.png

draw: pictures of captions spread evenly over the training split; picture i has seed i, whatever the sampler. May be
stopped and run again, and be shared by ranks under torchrun. score: one line for each folder in DIR, with a standard
deviation from halves of the pictures.
Features: EfficientNet-Lite0 (`imagen.evaluate.features`), not Inception.
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


def drawn(data: str, n: int) -> list[int]:
    """Which samples of the training split lend their captions."""
    total = len(open_split(data, "train"))
    return [i * total // n for i in range(n)]


def draw(options: argparse.Namespace) -> None:
    cascade = imagen.load(options.cascade, stages=1)
    stage = cascade.stages[0].config
    captions = dataset_batch(
        options.data, drawn(options.data, options.n), resolution=stage.resolution, split="train"
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


def calls(folder: Path) -> int:
    """Network calls of a picture in DIR/NAME-STEPS."""
    steps = int(folder.name.rsplit("-", 1)[1])
    return 2 * steps - 1 if folder.name.startswith("heun") else steps


def real_features(options: argparse.Namespace, network) -> tuple[np.ndarray, np.ndarray]:
    """Of the drawings whose captions were used, and of all others."""
    used = drawn(options.data, options.n)
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


def spread(features: np.ndarray, reference: np.ndarray, repeats: int = 10) -> float:
    """Standard deviation of the KID of all pictures, from that of random halves."""
    random = np.random.default_rng(0)
    half = len(features) // 2
    values = [kid(features[random.permutation(len(features))[:half]], reference) for _ in range(repeats)]
    return float(np.std(values) / 2**0.5)


def score(options: argparse.Namespace) -> None:
    network = load_classifier()
    same, reference = real_features(options, network)
    rows = [("real drawings", 0, len(same), kid(same, reference), spread(same, reference))]
    for folder in sorted(Path(options.out).iterdir(), key=lambda path: (path.name.rsplit("-", 1)[0], calls(path))):
        files = sorted(folder.glob("[0-9]*.png"))
        cache = folder / "features.npy"
        if cache.exists() and len(np.load(cache)) == len(files):
            features = np.load(cache)
        else:
            features = picture_features(network, [Image.open(file).convert("RGB") for file in files])
            np.save(cache, features)
        sampler = folder.name.rsplit("-", 1)[0]
        rows.append((sampler, calls(folder), len(files), kid(features, reference), spread(features, reference)))
    for name, count, pictures, value, deviation in rows:
        print(f"{name:>20} {count:4} calls {pictures:5} pictures  KID {value:.4f} +- {deviation:.4f}", flush=True)
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
    axes.axhline(rows[0][3], color="gray", linestyle=":", label="real drawings")
    axes.set(xscale="log", xlabel="network calls a picture", ylabel="KID (EfficientNet-Lite0)")
    axes.legend()
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("draw", "score"))
    parser.add_argument("cascade", nargs="?", help="a cascade, or a training run (draw)")
    parser.add_argument("--data", required=True)
    parser.add_argument("--out", required=True)
    parser.add_argument("--n", type=int, default=1000)
    parser.add_argument("--sampler", default="dpmpp_2m")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--spacing", default="auto")
    parser.add_argument("--guidance", type=float, help="default: the stage's own")
    parser.add_argument("--damping", type=float, help="likewise")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--plot")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    draw(options) if options.what == "draw" else score(options)


if __name__ == "__main__":
    main()
