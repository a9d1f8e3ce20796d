"""The conditional gap: does the network use its prompt?

    gap = loss with permuted captions - loss with the right captions

on the same images with the same noise. A network that ignores its text has a gap of 0; one that reads it, above 0.
"""

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import replace

from torch import nn

from imagen.data.loading.batches import Batch
from imagen.stage.loss import ForwardProcess


class ConditionalGap:
    """A fixed set of samples with fixed noise and t, so that values of different steps compare.

    The loss is the weighted one of training, without text dropout, over t stratified across the whole set.
    """

    def __init__(self, batches: Iterable[Batch], forward_process: ForwardProcess):
        """batches: with text, and two samples or more each: permuting captions needs another one."""
        self.batches = list(batches)
        self.forward_process = forward_process

    def measure(self, unet: nn.Module, autocast: Callable[[], AbstractContextManager]) -> tuple[float, float]:
        """Return (gap, loss with the right captions). Call it in eval mode and without gradients."""
        right = permuted = 0.0
        for batch in self.batches:
            with autocast():
                right += self._loss(unet, batch)
                permuted += self._loss(unet, with_other_captions(batch))
        samples = sum(len(batch) for batch in self.batches)
        return (permuted - right) / samples, right / samples

    def _loss(self, unet: nn.Module, batch: Batch) -> float:
        return self.forward_process.loss(unet, self.forward_process(batch)).total.sum().item()


def with_other_captions(batch: Batch) -> Batch:
    """Give every sample its neighbour's caption: none keeps its own, and the order of the data is random already."""
    assert batch.text is not None and batch.text_mask is not None
    captions = batch.captions[-1:] + batch.captions[:-1]
    return replace(batch, captions=captions, text=batch.text.roll(1, 0), text_mask=batch.text_mask.roll(1, 0))
