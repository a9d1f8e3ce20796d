"""Sample grids: images for the same captions from the same noise, at intervals during training."""

from itertools import islice

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from imagen.pictures import contact_sheet, write_png
from imagen.stage.inputs import from_uint8, to_images, to_uint8
from imagen.stage.resize import upsample
from imagen.train.callbacks import Callback
from imagen.train.sampling import image_size, sample_batch
from imagen.train.setup import TrainingRun

IMAGES = 16  # per grid
SHAPES = 4  # per grid, with buckets


class SampleGrid(Callback):
    """Writes RUN/samples/step-NNNNNNNN.png every `train.sample_every` steps, sampled with the EMA weights.

    Uses held-out captions if there are any. For a super-resolution stage each row shows the upsampled input, the output
    and the original. With buckets, each quarter of the grid has the size of one bucket. All ranks have this callback,
    because the ranks of a sharded network must sample together.
    """

    after_checkpoint = True

    def on_start(self, run: TrainingRun) -> None:
        self.every = run.config.sample_every
        count = min(IMAGES, len(run.data.dataset(run.data.validation_split)))
        size = count if run.experiment.data.buckets is None else max(1, count // SHAPES)
        # Read with a loader, because it replaces bad samples.
        loader = run.data.validation_loader(size, 0, run.ranks.device, crop=None, flip=False)
        self._batches = list(islice(loader, count // size))

    def on_interval(self, run: TrainingRun, step: int) -> None:
        with run.evaluating() as unet:
            images = [image for batch in self._batches for image in sample_batch(run, unet, batch)]
        if not run.ranks.is_first:
            return
        sheet = self._sheet(images)
        write_png(run.folder / "samples" / f"step-{step:08d}.png", sheet, {"preset": run.experiment.name, "step": step})
        run.log_image("samples", torch.from_numpy(np.array(sheet)).permute(2, 0, 1))

    def _sheet(self, images: list[Tensor]) -> Image.Image:
        shown = [image for image_CHW in images for image in to_images(image_CHW[None])]
        captions = [caption for batch in self._batches for caption in batch.captions]
        if self._batches[0].low_res is None:
            return contact_sheet(shown, captions)
        inputs, originals = [], []
        for batch in self._batches:
            assert batch.low_res is not None
            inputs += to_images(to_uint8(upsample(from_uint8(batch.low_res), image_size(batch))))
            originals += to_images(batch.image)
        shown = [image for row in zip(inputs, shown, originals, strict=True) for image in row]
        captions = [text for caption in captions for text in ("input", caption, "original")]
        return contact_sheet(shown, captions, columns=6)
