"""What the demo shows before it trains: pictures by the weights that come with the package."""

import time
from collections.abc import Callable
from pathlib import Path

from imagen.cascade import Cascade
from imagen.errors import UserError
from imagen.pictures import contact_sheet, write_png
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


def draw_first(out: Path, say: Callable[[str], None]) -> list[Path]:
    """Write out/octopus.png (1024 pixels) and out/pretrained.png; return their paths: none without the weights."""
    began = time.monotonic()
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
    small = cascade.sample(
        list(SMALL), seeds=1, stages=min(2, len(cascade.stages)), batch_size=len(SMALL), progress=False
    )
    write_png(sheet, contact_sheet(small, SMALL, columns=3, cell=256))
    say(f"    {octopus} and {sheet}, in {time.monotonic() - began:.0f} s; the rest trains a cascade from nothing")
    return [octopus, sheet]
