"""Measure the quality of a super-resolution stage on held-out drawings.

    python benchmarks/emoji_quality.py RUN --data SHARDS --sheet sheet.png

Upsamples held-out drawings with the stage, with and without its conditioning augmentation. Prints the PSNR against the
original drawings, the PSNR of bicubic upsampling for comparison, and the mean error of each colour channel. For the
prompt alignment of a base model, use `imagen evaluate-emoji`.
"""

import argparse
import dataclasses

import numpy as np
import torch
from PIL import Image

from imagen.cascade import Cascade
from imagen.data.loading.stream import dataset_batch
from imagen.evaluate.metrics.restoration import colour_error, psnr
from imagen.pictures import contact_sheet, write_png
from imagen.stage.inputs import to_images


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="a training run or a cascade")
    parser.add_argument("--data", required=True, help="shards with a held-out split")
    parser.add_argument("--n", type=int, default=32, help="number of drawings (default: 32)")
    parser.add_argument("--stage", type=int, default=0, help="index of the stage in a cascade: 0, 1 or 2")
    parser.add_argument("--steps", type=int, help="sampler steps (default: the stage's own)")
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--sheet", help="PNG file for a sheet of inputs, outputs and originals")
    parser.add_argument("--threads", type=int)
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)

    loaded = Cascade.load(options.run)
    stage = loaded.stages[options.stage]
    has_text = stage.config.unet.text_width is not None
    text = loaded.text if has_text else None
    cascade = Cascade([stage], text=text, unconditional=loaded.unconditional if has_text else None)
    indices, config = list(range(options.n)), stage.config
    batch = dataset_batch(
        options.data,
        indices,
        resolution=config.resolution,
        low_resolution=config.low_resolution,
        text=text,
        split="heldout",
    )
    assert batch.low_res is not None
    print(dict(stage.info))
    small, truths = to_images(batch.low_res), [np.array(image) for image in to_images(batch.image)]
    side = (config.resolution, config.resolution)
    bicubic = [image.resize(side, Image.Resampling.BICUBIC) for image in small]
    print(f"bicubic: {psnr(map(np.array, bicubic), truths):.2f} dB")
    prompts = batch.captions if has_text else [""] * options.n
    large: list[Image.Image] = []
    for level in (config.sampling.low_res_noise, 0.0):
        steps = options.steps or config.sampling.steps
        settings = [dataclasses.replace(config.sampling, low_res_noise=level, steps=steps)]
        large = cascade.sample(prompts, seeds=indices, start=small, settings=settings, batch_size=options.batch_size)
        shift = ", ".join(f"{value:+.3f}" for value in colour_error(map(np.array, large), truths))
        quality = psnr(map(np.array, large), truths)
        print(f"augmentation level {level:g}: {quality:.2f} dB, colour error (r, g, b) {shift} of 255")
    if options.sheet:
        originals = to_images(batch.image)
        rows = [image for row in zip(small, bicubic, large, originals, strict=True) for image in row][:64]
        captions = [str(config.low_resolution), "bicubic", "sampled", "original"] * (len(rows) // 4)
        write_png(options.sheet, contact_sheet(rows, captions, columns=8))


if __name__ == "__main__":
    main()
