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

LOOKS = 1000  # training pictures that each object needs before it is recognisable
FEWEST, MOST = 8, 96  # objects
VARIANTS = 3  # pictures of each object on each background
PROMPTS, SHOWN = 48, 12  # held-out prompts that are drawn and judged; those of them that are enlarged
SR_SHARE = 0.15  # of the training time; the base, which reads the text, gets the rest
DATA_SECONDS = 0.12  # to render and encode one picture on one busy core
REPORT_SECONDS = 8.0  # assembling, judging, plots and page


@dataclass(frozen=True)
class Budget:
    """The demo's resources. Times are in seconds."""

    machine: str  # description
    base: Throughput
    objects: int
    prompts: int
    shown: int
    drawing: float  # kept back for pictures and the page
    data: float  # expected

    def training(self, left: float) -> tuple[float, float]:
        """Split what is left, less the drawing, between base and super-resolution."""
        whole = max(left - self.drawing, left / 4)  # a tiny budget still trains a little
        return whole * (1 - SR_SHARE), whole * SR_SHARE


def choose_budget(
    minutes: float,
    base: Experiment,
    sr: Experiment,
    device: torch.device,
    *,
    objects: int | None = None,
    prompts: int = PROMPTS,
) -> Budget:
    """Time both networks on `device` and choose as many objects as the base can learn in `minutes`.

    objects: taken as given; what the data of an earlier call have.
    """
    began = time.monotonic()
    quick = min(2.0, minutes)  # seconds: a tiny budget is not spent on measuring
    speeds = [measure_throughput(experiment, device, seconds=quick) for experiment in (base, sr)]
    shown = min(SHOWN, prompts)
    drawing = REPORT_SECONDS + sum(
        speed.forward_seconds(calls(experiment.stage) * count * gflop(experiment))
        for speed, experiment, count in zip(speeds, (base, sr), (prompts, shown), strict=True)
    )
    left = 60 * minutes - (time.monotonic() - began) - drawing
    if objects is None:
        # Seconds for each object: its share of the training, and its pictures.
        for_each = LOOKS / speeds[0].images_per_s / (1 - SR_SHARE) + _data_seconds(1)
        objects = max(FEWEST, min(MOST, 4 * int(left / for_each / 4)))
    return Budget(
        machine=describe(device, base),
        base=speeds[0],
        objects=objects,
        prompts=prompts,
        shown=shown,
        drawing=drawing,
        data=_data_seconds(objects),
    )


def _data_seconds(objects: int) -> float:
    return objects * len(PALETTE) * VARIANTS * DATA_SECONDS


def calls(stage: StageConfig) -> float:
    """Return the network calls for one picture at the stage's sampling defaults, guided ones counted twice."""
    return stage.sampling.steps * (2 if stage.sampling.guidance != 1 else 1)


def gflop(experiment: Experiment) -> float:
    """Return 10^9 operations of one call for a whole picture; training may see crops of it."""
    side = experiment.data.crop or experiment.stage.resolution
    return image_flops(meta_unet(experiment), experiment) / 1e9 * (experiment.stage.resolution / side) ** 2


def describe(device: torch.device, experiment: Experiment) -> str:
    """Return what computes, and in which format: "2 CPU threads (AVX2) in fp32"."""
    precision = precision_name(autocast_dtype(device, experiment.train.precision))
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)} in {precision}"
    if device.type != "cpu":
        return f"{device.type} in {precision}"
    threads = torch.get_num_threads()
    counted = f"{threads} CPU thread{'s' if threads > 1 else ''}"
    return f"{counted} ({torch.backends.cpu.get_cpu_capability()}) in {precision}"
