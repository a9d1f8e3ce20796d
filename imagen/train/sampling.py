"""Sample a batch's captions during training, with the network that is being trained."""

import torch
from torch import Tensor, nn

from imagen.data.loading.batches import Batch
from imagen.stage.sampling import Stage
from imagen.train.setup import TrainingRun

PIXELS = 16 * 128**2  # per micro-batch: 16 images of 1024 x 1024 do not fit on a GPU


def sampling_micro_batch(resolution: int, images: int = 16) -> int:
    """Return how many images are sampled together."""
    return max(1, min(images, PIXELS // resolution**2))


def sample_batch(run: TrainingRun, unet: nn.Module, batch: Batch) -> Tensor:
    """Return an image for each caption of a batch, uint8 [B, C, H, W] on the CPU.

    A super-resolution stage upsamples the batch's inputs. unet: as `run.evaluating()` yields it. The noise of an image
    depends on its sample's position, and so is the same at every step.
    """
    config, texts = run.experiment.stage, _texts(batch)
    stage, micro_batch = Stage(config, _ForwardOnly(unet)), sampling_micro_batch(config.resolution)
    images = []
    for begin in range(0, len(batch), micro_batch):
        part = slice(begin, begin + micro_batch)
        images.append(
            stage.sample(
                list(range(batch.position, batch.position + len(batch)))[part],
                size=image_size(batch),
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


class _ForwardOnly(nn.Module):
    """Wraps a network in training, possibly sharded: sampling calls its forward pass but does not move or change it."""

    network: nn.Module

    def __init__(self, network: nn.Module):
        super().__init__()
        object.__setattr__(self, "network", network)  # not a submodule: it would be moved with this module

    def forward(self, *args: Tensor, **kwargs: Tensor) -> Tensor:
        return self.network(*args, **kwargs)


def image_size(batch: Batch) -> tuple[int, int]:
    """Return height and width of the batch's images."""
    height, width = batch.image.shape[-2:]
    return height, width


def _texts(batch: Batch) -> list[Tensor] | None:
    """Return the batch's text embeddings [L_i, D] without padding; None without text."""
    if batch.text is None or batch.text_mask is None:
        return None
    return [tokens_LD[mask_L] for tokens_LD, mask_L in zip(batch.text, batch.text_mask, strict=True)]
