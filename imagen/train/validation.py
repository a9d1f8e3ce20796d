"""The conditional gap, which measures whether the network uses its text.

    gap = loss with permuted captions - loss with the right captions

on the same images with the same noise. The gap is 0 for a network that ignores its text, and positive for one that
uses it.
"""

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import replace

from torch import nn

from imagen.data.loading.batches import Batch
from imagen.stage.loss import ForwardProcess


class ConditionalGap:
    """A fixed set of samples with fixed noise and t, so that values of different steps are comparable.

    The loss is the weighted training loss without text dropout, with t stratified over the whole set.
    """

    def __init__(self, batches: Iterable[Batch], forward_process: ForwardProcess):
        """Store the batches. Each has text and at least two samples, because captions are permuted within a batch."""
        self.batches = list(batches)
        self.forward_process = forward_process

    def measure(self, unet: nn.Module, autocast: Callable[[], AbstractContextManager]) -> tuple[float, float]:
        """Return (gap, loss with the right captions). Call this in eval mode and without gradients."""
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
    """Return the batch with each caption moved to the next sample. The order of the samples is random already."""
    assert batch.text is not None and batch.text_mask is not None
    captions = batch.captions[-1:] + batch.captions[:-1]
    return replace(batch, captions=captions, text=batch.text.roll(1, 0), text_mask=batch.text_mask.roll(1, 0))
