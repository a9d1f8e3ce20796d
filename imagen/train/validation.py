"""The conditional gap: is the prompt being used?

    gap = loss with every caption given to another picture - loss with the true captions

on the same pictures with the same noise. A network that ignores its text has a gap of 0; one that reads it, above 0.
"""

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import replace

from torch import nn

from imagen.data.loading.batches import Batch
from imagen.stage.loss import ForwardProcess


class ConditionalGap:
    """A fixed set of samples with fixed noise and t: values of different steps compare.

    The loss is the weighted one of training, without text dropout, over t stratified across the whole set.
    """

    def __init__(self, batches: Iterable[Batch], forward_process: ForwardProcess):
        """Each batch needs text and two samples or more: there must be another caption to give."""
        self.batches = list(batches)
        self.forward_process = forward_process

    def measure(self, unet: nn.Module, autocast: Callable[[], AbstractContextManager]) -> tuple[float, float]:
        """(gap, loss with the true captions); call it in eval mode and without gradients."""
        true = shuffled = 0.0
        for batch in self.batches:
            with autocast():
                true += self._loss(unet, batch)
                shuffled += self._loss(unet, with_other_captions(batch))
        samples = sum(len(batch) for batch in self.batches)
        return (shuffled - true) / samples, true / samples

    def _loss(self, unet: nn.Module, batch: Batch) -> float:
        return self.forward_process.loss(unet, self.forward_process(batch)).total.sum().item()


def with_other_captions(batch: Batch) -> Batch:
    """Every sample gets its neighbour's text: none keeps its own, and the order of the data is random already."""
    assert batch.text is not None and batch.text_mask is not None
    captions = batch.captions[-1:] + batch.captions[:-1]
    return replace(batch, captions=captions, text=batch.text.roll(1, 0), text_mask=batch.text_mask.roll(1, 0))
