"""Estimate how fast images are loaded, which may be slower than a GPU trains.

Decoding dominates: it takes time in proportion to the pixels of the stored file, even where JPEGs are decoded at a
fraction of their size.
"""

from dataclasses import dataclass, replace
from pathlib import Path

from imagen.errors import check_number
from imagen.train.experiment import Experiment
from imagen.train.plan.calibration import CALIBRATION

ASPECT = 1.5  # longer over shorter side of an image of unknown size
SECONDS = 3.0  # of a measurement


@dataclass(frozen=True, kw_only=True)
class Loading:
    """The loader of a plan: rates in images per second."""

    per_process: float
    measured: bool  # on this machine, with the shards of the plan; else calculated
    megapixels: float | None  # of a stored image, from which it was calculated
    workers: int  # loader processes per GPU
    images_per_s: float  # of all loader processes of all GPUs
    samples: int | None = None  # of the shards


def estimate_loading(experiment: Experiment, gpus: int, megapixels: float | None = None) -> Loading:
    """Calculate the loader's rate from the size of the stored images.

    megapixels: of a stored image; default: of one whose shorter side is the stage's resolution.
    """
    if megapixels is None:
        megapixels = ASPECT * experiment.stage.resolution**2 / 1e6
    check_number("--megapixels", megapixels, above=0, most=1e6)
    rate = 1e3 / (CALIBRATION["sample"].value + CALIBRATION["decode"].value * megapixels)
    return _loading(experiment, gpus, rate, measured=False, megapixels=megapixels)


def measure_loading(experiment: Experiment, gpus: int, shards: str | Path, seconds: float = SECONDS) -> Loading:
    """Load from `shards` in this process for `seconds`. Raises UserError if there are none, or if they do not fit."""
    from imagen.data.loading.bench import bench
    from imagen.data.shards.dataset import open_split

    stage, config = experiment.stage, replace(experiment.data, workers=0)
    found = bench(shards, config, resolution=stage.resolution, low_resolution=stage.low_resolution, seconds=seconds)
    loading = _loading(experiment, gpus, found["images_per_s"], measured=True, megapixels=None)
    return replace(loading, samples=len(open_split(shards, "train", config.shard_cache)))


def _loading(experiment: Experiment, gpus: int, rate: float, *, measured: bool, megapixels: float | None) -> Loading:
    workers = experiment.data.workers
    total = rate * max(1, workers) * gpus
    return Loading(per_process=rate, measured=measured, megapixels=megapixels, workers=workers, images_per_s=total)
