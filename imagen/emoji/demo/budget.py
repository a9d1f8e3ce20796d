"""Choose the demo's amount of data and training for a given time, by measuring training steps on this machine."""

import time
from dataclasses import dataclass

import torch

from imagen.cascade import StageConfig
from imagen.emoji.dataset import PALETTE
from imagen.precision import autocast_dtype, precision_name
from imagen.train.experiment import Experiment
from imagen.train.flops import image_flops, meta_unet
from imagen.train.throughput import Throughput, measure_throughput

VIEWS_PER_OBJECT = 1000  # training images that an object needs to become recognisable
MIN_OBJECTS, MAX_OBJECTS = 8, 96
VARIANTS = 3  # images per object and background
PROMPTS, SHOWN = 48, 12  # held-out prompts that are sampled and scored; how many of these images are upsampled
SR_SHARE = 0.15  # fraction of the training time for super-resolution; the rest is for the base model
DATA_SECONDS = 0.12  # to render and encode one image on one busy core
REPORT_SECONDS = 8.0  # to assemble the cascade, score the images, and write plots and page


@dataclass(frozen=True)
class Budget:
    """The demo's resources. Times are in seconds."""

    machine: str  # description
    base: Throughput
    objects: int
    prompts: int
    shown: int
    sampling: float  # reserved for sampling and the report
    data: float  # expected time to build the data

    def training(self, left: float) -> tuple[float, float]:
        """Split the remaining time, minus the time for sampling, between base and super-resolution training."""
        training = max(left - self.sampling, left / 4)  # even a tiny budget includes some training
        return training * (1 - SR_SHARE), training * SR_SHARE


def choose_budget(
    minutes: float,
    base: Experiment,
    sr: Experiment,
    device: torch.device,
    *,
    objects: int | None = None,
    prompts: int = PROMPTS,
) -> Budget:
    """Measure both networks on `device` and choose as many objects as the base can learn in `minutes`.

    objects: use this number instead, for example that of existing data.
    """
    start = time.monotonic()
    seconds = min(2.0, minutes)  # short for a tiny budget
    speeds = [measure_throughput(experiment, device, seconds=seconds) for experiment in (base, sr)]
    shown = min(SHOWN, prompts)
    sampling = REPORT_SECONDS + sum(
        speed.forward_seconds(network_evaluations(experiment.stage) * count * gflop(experiment))
        for speed, experiment, count in zip(speeds, (base, sr), (prompts, shown), strict=True)
    )
    left = 60 * minutes - (time.monotonic() - start) - sampling
    if objects is None:
        # Seconds per object: training on its images, and building them.
        per_object = VIEWS_PER_OBJECT / speeds[0].images_per_s / (1 - SR_SHARE) + _data_seconds(1)
        objects = max(MIN_OBJECTS, min(MAX_OBJECTS, 4 * int(left / per_object / 4)))
    return Budget(
        machine=describe(device, base),
        base=speeds[0],
        objects=objects,
        prompts=prompts,
        shown=shown,
        sampling=sampling,
        data=_data_seconds(objects),
    )


def _data_seconds(objects: int) -> float:
    """Return the expected time to build the data of `objects` objects."""
    return objects * len(PALETTE) * VARIANTS * DATA_SECONDS


def network_evaluations(stage: StageConfig) -> float:
    """Return the network evaluations per image at the stage's sampling defaults; guidance doubles them."""
    return stage.sampling.steps * (2 if stage.sampling.guidance != 1 else 1)


def gflop(experiment: Experiment) -> float:
    """Return the GFLOP of one network evaluation for a whole image, even if training uses crops."""
    side = experiment.data.crop or experiment.stage.resolution
    return image_flops(meta_unet(experiment), experiment) / 1e9 * (experiment.stage.resolution / side) ** 2


def describe(device: torch.device, experiment: Experiment) -> str:
    """Return a description of device and precision, such as "2 CPU threads (AVX2) in fp32"."""
    precision = precision_name(autocast_dtype(device, experiment.train.precision))
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)} in {precision}"
    if device.type != "cpu":
        return f"{device.type} in {precision}"
    threads = torch.get_num_threads()
    count = f"{threads} CPU thread{'s' if threads > 1 else ''}"
    return f"{count} ({torch.backends.cpu.get_cpu_capability()}) in {precision}"
