"""Cache the cross-attention keys and values of prompts between network evaluations."""

from typing import Any

from torch import Tensor

from imagen.models.unet import TextCache, UNet


class TextCachingUNet:
    """A U-Net with cached cross-attention keys and values, since all steps of a sampler have the same text.

    Texts are identified by tensor object. Neither the tensors nor the U-Net's weights may change; otherwise the cache
    would be stale.
    """

    def __init__(self, unet: UNet):
        self.unet = unet
        self._caches: list[tuple[Tensor, TextCache]] = []

    def __call__(self, x_BCHW: Tensor, noise_B: Tensor, *, text: Tensor | TextCache, **conditions: Any) -> Tensor:
        if isinstance(text, TextCache):
            return self.unet(x_BCHW, noise_B, text=text, **conditions)
        cache = next((cache for known, cache in self._caches if known is text), None)
        if cache is None:
            cache = self.unet.cache_text(text, conditions.get("text_mask"))
            # Two texts: with and without the unconditional half of the batch.
            self._caches = [*self._caches[-1:], (text, cache)]
        return self.unet(x_BCHW, noise_B, text=cache, **conditions)
