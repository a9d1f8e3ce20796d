"""Let a base model redraw the smallest masters of shards, to train super-resolution on what the base generates.

    python -m imagen.emoji.fluent.redraw CASCADE SHARDS --out REDRAWN

Each master is noised and denoised by the base stage with its caption (image-to-image, `imagen.stage.editing`). The
result has the base's outlines and textures, but still shows the same drawing at the same place, so it belongs to the
larger master. Afterwards, `imagen data encode REDRAWN`.
"""

import argparse
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from imagen.cascade import Cascade
from imagen.data.shards.dataset import open_split, splits
from imagen.data.shards.writer import ShardWriter
from imagen.emoji.picture import hashed
from imagen.errors import UserError, exit_on_user_error
from imagen.files import read_json, write_json
from imagen.progress import progress_bar

STRENGTHS = (0.2, 0.35, 0.5, 0.6)  # shares of the sampler's steps that are taken; more changes what is drawn

NOTE = ".redrawn.json"  # in the output folder: how its images are made


def redraw(
    cascade: Cascade,
    shards: Path,
    out: Path,
    *,
    strengths: Sequence[float] = STRENGTHS,
    batch_size: int = 32,
    progress: bool = True,
) -> int:
    """Copy the splits of `shards` to `out` with redrawn masters at the resolution of the first stage; return how many.

    Each batch takes one of `strengths` at random. A finished split is not repeated; a partial one starts over. Raises
    UserError if a sample has no such master, or if `out` has images of another base or of other shards.
    """
    datasets = {split: open_split(shards, split) for split in splits(shards)}
    arguments = {
        "shards": {split: dataset.fingerprint() for split, dataset in datasets.items()},
        "base": cascade.stages[0].sha256,
        "strengths": list(strengths),
        "batch_size": batch_size,
    }
    _claim(out, shards, arguments)
    size = cascade.stages[0].config.resolution
    for split, dataset in datasets.items():
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
                    [dataset.caption(i) for i in numbers],
                    init=[Image.open(io.BytesIO(sample[f"{size}.png"])) for sample in samples],
                    strength=strengths[hashed("redraw", split, first) % len(strengths)],
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
    described = shards / "dataset.json"
    if described.is_file():
        description = read_json(described)
        made = {**description["arguments"], "redrawn": arguments}
        write_json(out / "dataset.json", {**description, "arguments": made})
    return sum(map(len, datasets.values()))


def _claim(out: Path, shards: Path, arguments: dict[str, Any]) -> None:
    """Note in `out` how its images are made. Raises UserError if that differs from what is noted, or for `shards`."""
    if out.resolve() == shards.resolve():
        raise UserError(f"{out} has the images to be redrawn; choose another folder")
    note = out / NOTE
    if not note.is_file():
        write_json(note, arguments)
    elif read_json(note) != arguments:
        raise UserError(f"{out} has images of another base, or of other shards; choose another folder or delete it")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cascade", help="a cascade or a training run of a base stage")
    parser.add_argument("shards", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    count = redraw(Cascade.load(options.cascade, stages=1), options.shards, options.out)
    print(f"{options.out}: {count} samples; then: imagen data encode {options.out}")


if __name__ == "__main__":
    with exit_on_user_error():
        main()
