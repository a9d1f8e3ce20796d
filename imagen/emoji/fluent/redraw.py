"""Let a base model redraw the smallest masters of shards, to train super-resolution on what the base generates.

    python -m imagen.emoji.fluent.redraw CASCADE SHARDS --out REDRAWN

Each master is noised and denoised by the base stage with its caption (image-to-image, `imagen.stage.editing`). The
result has the base's outlines and textures, but still shows the same drawing at the same place, so it belongs to the
larger master. Afterwards, `imagen data encode REDRAWN`.
"""

import argparse
import io
import random
import shutil
from pathlib import Path

from PIL import Image

from imagen.cascade import Cascade
from imagen.data.shards.dataset import open_split, splits
from imagen.data.shards.writer import ShardWriter
from imagen.emoji.picture import hashed
from imagen.errors import UserError
from imagen.progress import progress_bar

STRENGTHS = (0.2, 0.35, 0.5, 0.6)  # shares of the sampler's steps that are taken; more changes what is drawn


def redraw(
    cascade: Cascade,
    shards: Path,
    out: Path,
    *,
    strengths: tuple[float, ...] = STRENGTHS,
    batch_size: int = 32,
    progress: bool = True,
) -> int:
    """Copy the splits of `shards` to `out` with redrawn masters at the resolution of the first stage; return how many.

    Each batch takes one of `strengths` at random. A finished split is not repeated; a partial one starts over. Raises
    UserError if a sample has no such master.
    """
    size = cascade.stages[0].config.resolution
    count = 0
    for split in splits(shards):
        dataset = open_split(shards, split)
        count += len(dataset)
        if (out / split).exists():
            continue
        partial = out / f"{split}.partial"
        with (
            ShardWriter(partial, overwrite=True) as writer,
            progress_bar(total=len(dataset), unit="image", desc=split, disable=not progress) as bar,
        ):
            for first in range(0, len(dataset), batch_size):
                numbers = range(first, min(first + batch_size, len(dataset)))
                samples = [{name: dataset.read(i, name) for name in dataset.extensions(i)} for i in numbers]
                if any(f"{size}.png" not in sample for sample in samples):
                    raise UserError(f"{shards} has samples without a master of {size} pixels ({size}.png)")
                images = cascade.sample(
                    [sample["txt"].decode() for sample in samples],
                    init=[Image.open(io.BytesIO(sample[f"{size}.png"])) for sample in samples],
                    strength=random.Random(hashed("redraw", split, first)).choice(strengths),
                    seeds=list(numbers),
                    stages=1,
                    batch_size=batch_size,
                    progress=False,
                )
                for i, sample, image in zip(numbers, samples, images, strict=True):
                    png = io.BytesIO()
                    image.save(png, "PNG", compress_level=1)
                    writer.write({"__key__": dataset.key(i), **sample, f"{size}.png": png.getvalue()})
                bar.update(len(numbers))
        partial.rename(out / split)
    shutil.copy(shards / "dataset.json", out / "dataset.json")
    return count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cascade", help="a cascade or a training run of a base stage")
    parser.add_argument("shards", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    print(f"{options.out}: {redraw(Cascade.load(options.cascade, stages=1), options.shards, options.out)} samples")


if __name__ == "__main__":
    main()
