"""How well emoji models follow prompts that they were never trained on, and how well they enlarge held-out pictures.

    python benchmarks/emoji_quality.py base RUN --guidance 1 3 5 --sheet sheet.png
    python benchmarks/emoji_quality.py sr RUN --data SHARDS --sheet sheet.png

base: draws held-out combinations of object and colour; prints how often the background has the named colour.
sr: enlarges the held-out 64-pixel drawings (no conditioning noise, and the stage's default); prints the PSNR against
the true 256-pixel drawings beside that of bicubic enlargement, and the mean error of each colour channel.
"""

import argparse
import dataclasses

import numpy as np
import torch
from PIL import Image

from imagen.cascade import Cascade
from imagen.cascade.conditioning import to_images
from imagen.data.emoji import heldout_prompts
from imagen.data.loader import dataset_batch
from imagen.evaluate.colour import background_colour
from imagen.evaluate.restoration import colour_error, psnr
from imagen.pictures import contact_sheet, write_png


def base(options: argparse.Namespace) -> None:
    cascade = Cascade.load(options.run, stages=1)
    print(dict(cascade.stages[0].info))
    prompts = heldout_prompts(options.n)
    for guidance in options.guidance or [cascade.stages[0].config.sampling.guidance]:
        pictures = cascade.sample(
            [p.prompt for p in prompts], seeds=list(range(len(prompts))), guidance=guidance, steps=options.steps
        )
        right = [background_colour(np.array(picture)) == p.colour for picture, p in zip(pictures, prompts, strict=True)]
        print(f"guidance {guidance:g}: {np.mean(right):.1%} of {len(right)} backgrounds have the colour of the prompt")
        if options.sheet:
            captions = [("" if ok else "(wrong) ") + p.prompt for ok, p in zip(right, prompts, strict=True)]
            write_png(
                options.sheet.replace("%g", f"{guidance:g}"), contact_sheet(pictures, captions, columns=8, cell=128)
            )


def sr(options: argparse.Namespace) -> None:
    cascade = Cascade.load(options.run)
    stage = cascade.stages[0].config
    indices = list(range(options.n))
    batch = dataset_batch(
        options.data,
        indices,
        resolution=stage.resolution,
        low_resolution=stage.low_resolution,
        text=cascade.text,
        split="heldout",
    )
    assert batch.low_res is not None
    print(dict(cascade.stages[0].info))
    small, truths = to_images(batch.low_res), [np.array(image) for image in to_images(batch.image)]
    side = (stage.resolution, stage.resolution)
    bicubic = [image.resize(side, Image.Resampling.BICUBIC) for image in small]
    print(f"bicubic: {psnr(map(np.array, bicubic), truths):.2f} dB")
    large: list[Image.Image] = []
    for level in (stage.sampling.low_res_noise, 0.0):
        settings = [
            dataclasses.replace(stage.sampling, low_res_noise=level, steps=options.steps or stage.sampling.steps)
        ]
        large = cascade.sample(batch.captions, seeds=indices, start=small, settings=settings)
        shift = ", ".join(f"{value:+.3f}" for value in colour_error(map(np.array, large), truths))
        print(f"noise {level:g}: {psnr(map(np.array, large), truths):.2f} dB, colour error (r, g, b) {shift} of 255")
    if options.sheet:
        true = to_images(batch.image)
        rows = [image for row in zip(small, bicubic, large, true, strict=True) for image in row][:64]
        write_png(options.sheet, contact_sheet(rows, ["64", "bicubic", "ours", "true"] * (len(rows) // 4), columns=8))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("base", "sr"))
    parser.add_argument("run", help="a training run, or a cascade")
    parser.add_argument("--data", help="shards with a held-out split (sr)")
    parser.add_argument("--n", type=int, default=64)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--guidance", type=float, nargs="+")
    parser.add_argument("--sheet", help="picture to write; %%g stands for the guidance weight")
    parser.add_argument("--threads", type=int)
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    base(options) if options.what == "base" else sr(options)


if __name__ == "__main__":
    main()
