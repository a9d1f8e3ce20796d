"""Sample from the packaged weights, before the demo trains its own."""

import math
import time
from collections.abc import Callable
from pathlib import Path

import torch

from imagen.cascade import Cascade
from imagen.errors import UserError
from imagen.pictures import contact_sheet, write_png
from imagen.train.throughput import Throughput
from imagen.weights import packaged

NAME = "emoji"
LARGE = "an octopus on a blue background"  # sampled with all stages
SMALL = (  # sampled with the first two stages
    "a crown on a purple background",
    "a strawberry on a teal background",
    "a helicopter on an orange background",
    "an elephant on a green background",
    "a star on a pink background",
    "three pears on a gray background",
)
# GFLOP of the image of 1024 pixels, and of the six smaller ones, at the sampling defaults of the packaged weights.
LARGE_GFLOP, SMALL_GFLOP = 330.0, 850.0


def sample_packaged(
    out: Path,
    report: Callable[[str], None],
    *,
    device: torch.device | None = None,
    speed: Throughput | None = None,
    budget: float = math.inf,
) -> list[Path]:
    """Write `out`/octopus.png (1024 pixels) and `out`/pretrained.png; return their paths.

    device: default: the best one. speed: its throughput.
    budget: seconds; an image is skipped if it would take longer at `speed`.
    Writes nothing if the installation lacks the weights.
    """
    start = time.monotonic()
    if speed is not None and speed.forward_seconds(LARGE_GFLOP) > budget:
        return []
    try:
        folder = packaged(NAME)
    except UserError as error:
        report(f"no images before training: {error}")
        return []
    assert folder is not None
    report("0/4 images from the packaged reference weights")
    cascade = Cascade.load(folder)
    sheet, octopus = out / "pretrained.png", out / "octopus.png"
    write_png(octopus, cascade.sample([LARGE], seeds=1, device=device, progress=False)[0])
    paths = [octopus]
    if speed is None or speed.forward_seconds(LARGE_GFLOP + SMALL_GFLOP) <= budget:
        stages, batch_size = min(2, len(cascade.stages)), len(SMALL)
        small = cascade.sample(
            list(SMALL), seeds=1, stages=stages, batch_size=batch_size, device=device, progress=False
        )
        write_png(sheet, contact_sheet(small, SMALL, columns=3, cell=256))
        paths.append(sheet)
    written = " and ".join(map(str, paths))
    report(f"    {written}, in {time.monotonic() - start:.0f} s; the next steps train a cascade from scratch")
    return paths
