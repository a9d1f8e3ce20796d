"""What the demo shows before it trains: pictures by the weights that come with the package."""

import math
import time
from collections.abc import Callable
from pathlib import Path

from imagen.cascade import Cascade
from imagen.errors import UserError
from imagen.pictures import contact_sheet, write_png
from imagen.train.throughput import Throughput
from imagen.weights import packaged

NAME = "emoji"
LARGE = "an octopus on a blue background"  # drawn by all stages
SMALL = (  # by the first two
    "a crown on a purple background",
    "a strawberry on a teal background",
    "a sailboat on an orange background",
    "a ghost on a green background",
    "a star on a pink background",
    "three pears on a gray background",
)
# 10^9 operations of a picture of 1024 pixels and of the six smaller ones, at the weights' own sampling defaults.
LARGE_GFLOP, SMALL_GFLOP = 330.0, 850.0


def draw_first(
    out: Path, say: Callable[[str], None], *, speed: Throughput | None = None, budget: float = math.inf
) -> list[Path]:
    """Write out/octopus.png (1024 pixels) and out/pretrained.png; return their paths.

    speed: of this machine. budget: in seconds; what would take longer by `speed` is left out. So is everything where
    the package comes without the weights.
    """
    began = time.monotonic()
    if speed is not None and speed.forward_seconds(LARGE_GFLOP) > budget:
        return []
    try:
        folder = packaged(NAME)
    except UserError as error:
        say(f"no pictures before training: {error}")
        return []
    assert folder is not None
    say("0/4 pictures by the reference weights that come with the package")
    cascade = Cascade.load(folder)
    sheet, octopus = out / "pretrained.png", out / "octopus.png"
    write_png(octopus, cascade.sample([LARGE], seeds=1, progress=False)[0])
    paths = [octopus]
    if speed is None or speed.forward_seconds(LARGE_GFLOP + SMALL_GFLOP) <= budget:
        stages, batch_size = min(2, len(cascade.stages)), len(SMALL)
        small = cascade.sample(list(SMALL), seeds=1, stages=stages, batch_size=batch_size, progress=False)
        write_png(sheet, contact_sheet(small, SMALL, columns=3, cell=256))
        paths.append(sheet)
    drawn = " and ".join(map(str, paths))
    say(f"    {drawn}, in {time.monotonic() - began:.0f} s; the rest trains a cascade from nothing")
    return paths
