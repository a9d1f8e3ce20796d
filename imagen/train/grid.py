"""Sample grids: images for the same captions from the same noise, at intervals during training."""

from itertools import islice

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from imagen.data.loading.batches import Batch
from imagen.pictures import contact_sheet, write_png
from imagen.stage.inputs import from_uint8, to_images, to_uint8
from imagen.stage.resize import upsample
from imagen.stage.sampling import Stage
from imagen.train.callbacks import Callback
from imagen.train.setup import TrainingRun

IMAGES = 16  # per grid
PIXELS = IMAGES * 128**2  # per micro-batch: a whole grid of 1024 x 1024 does not fit on a GPU


def grid_micro_batch(resolution: int) -> int:
    """Return the number of images of a grid that are sampled together."""
    return max(1, min(IMAGES, PIXELS // resolution**2))


class SampleGrid(Callback):
    """Writes RUN/samples/step-NNNNNNNN.png every `train.sample_every` steps, sampled with the EMA weights.

    Uses held-out captions if there are any. For a super-resolution stage each row shows the upsampled input, the output
    and the original. All ranks have this callback, because the ranks of a sharded network must sample together.
    """

    def on_start(self, run: TrainingRun) -> None:
        self.every = run.config.sample_every
        count = min(IMAGES, len(run.data.dataset(run.data.validation_split)))
        # Read with a loader, because it replaces bad samples.
        loader = run.data.validation_loader(count, 0, run.ranks.device, crop=None, flip=False)
        (self._batch,) = islice(loader, 1)

    def on_interval(self, run: TrainingRun, step: int) -> None:
        with run.evaluating() as unet:
            images = self._sample(run, unet)
        if not run.ranks.is_first:
            return
        sheet = self._sheet(run, images)
        write_png(run.folder / "samples" / f"step-{step:08d}.png", sheet, {"preset": run.experiment.name, "step": step})
        run.log_image("samples", torch.from_numpy(np.array(sheet)).permute(2, 0, 1))

    def _sample(self, run: TrainingRun, unet: nn.Module) -> Tensor:
        """Return uint8 images [count, C, H, W] on the CPU."""
        config, batch, texts = run.experiment.stage, self._batch, _texts(self._batch)
        stage, micro_batch = Stage(config, _ForwardOnly(unet)), grid_micro_batch(config.resolution)
        images = []
        for begin in range(0, len(batch), micro_batch):
            part = slice(begin, begin + micro_batch)
            images.append(
                stage.sample(
                    list(range(len(batch)))[part],
                    size=(config.resolution, config.resolution),
                    settings=config.sampling,
                    texts=None if texts is None else texts[part],
                    unconditional=run.data.unconditional,
                    text_length=0 if texts is None else max(len(text_LD) for text_LD in texts),
                    low_BChw=None if batch.low_res is None else batch.low_res[part],
                    device=next(unet.parameters()).device,
                    precision=run.config.precision,
                )
            )
        return torch.cat(images)

    def _sheet(self, run: TrainingRun, images_BCHW: Tensor) -> Image.Image:
        batch, size = self._batch, (run.experiment.stage.resolution, run.experiment.stage.resolution)
        shown, captions = to_images(images_BCHW), list(batch.captions)
        if batch.low_res is None:
            return contact_sheet(shown, captions)
        upsampled = to_uint8(upsample(from_uint8(batch.low_res), size))
        rows = zip(to_images(upsampled), shown, to_images(batch.image), strict=True)
        shown = [image for row in rows for image in row]
        captions = [text for caption in captions for text in ("input", caption, "original")]
        return contact_sheet(shown, captions, columns=6)


class _ForwardOnly(nn.Module):
    """Wraps a network in training, possibly sharded: sampling calls its forward pass but does not move or change it."""

    network: nn.Module

    def __init__(self, network: nn.Module):
        super().__init__()
        object.__setattr__(self, "network", network)  # not a submodule: it would be moved with this module

    def forward(self, *args: Tensor, **kwargs: Tensor) -> Tensor:
        return self.network(*args, **kwargs)


def _texts(batch: Batch) -> list[Tensor] | None:
    """Return the batch's text embeddings [L_i, D] without padding; None without text."""
    if batch.text is None or batch.text_mask is None:
        return None
    return [tokens_LD[mask_L] for tokens_LD, mask_L in zip(batch.text, batch.text_mask, strict=True)]
