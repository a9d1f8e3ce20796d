"""Batch the network evaluations of several requests.

Each image runs the code of `imagen sample` in its own greenlet. Where that code evaluates a network, the greenlet
switches to its parent with a `Call`. The engine collects calls of equal shape, evaluates them as one batch, and
switches back to each greenlet with its part of the output. Sampler, steps, guidance and seed can therefore differ per
image; only the network is shared.

Shapes: R samples of a call (two for a guided image), B samples of a batch, CHW an image.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from greenlet import getcurrent
from torch import Tensor

from imagen.cascade import Cascade, Stage
from imagen.lora import Fitted, applied
from imagen.models.unet import TextCache, UNet
from imagen.precision import Precision, autocast, autocast_dtype
from imagen.stage.denoiser import Predict, build_predict

CachedPrompt = tuple[Tensor, TextCache]  # text embeddings [R, L, D] and the U-Net's keys and values for them


@dataclass(eq=False)
class Call:
    """One network evaluation that an image needs."""

    stage: int  # index in the cascade
    x_RCHW: Tensor
    noise_R: Tensor
    cond: dict[str, Tensor]  # first axis R
    text_caches: list[CachedPrompt] = field(default_factory=list)  # shared by all calls of an image in a stage
    lora: tuple[tuple[Fitted, float], ...] = ()  # with their weights

    @property
    def batch_size(self) -> int:
        """Return the number of samples, R."""
        return len(self.x_RCHW)

    @property
    def key(self) -> tuple[Any, ...]:
        """Return stage, shapes and LoRA; calls with equal keys fit into one batch."""
        shapes = sorted((name, tuple(value.shape[1:])) for name, value in self.cond.items())
        lora = tuple((fitted.adapter.sha256, weight) for fitted, weight in self.lora)
        return (self.stage, tuple(self.x_RCHW.shape[1:]), lora, *shapes)


class BatchedStage(Stage):
    """A stage whose network evaluations are passed to the parent greenlet as `Call`s."""

    def __init__(self, stage: Stage, index: int):
        super().__init__(stage.config, stage.unet, stage.info, stage.sha256, adapters=stage.adapters)
        self.index = index

    @contextmanager
    def loaded_unet(self, device: torch.device, dtype: torch.dtype | None) -> Iterator[Predict]:
        """Yield a function with the signature of the U-Net that passes each call to the parent greenlet."""
        text_caches: list[CachedPrompt] = []

        def predict(x_BCHW: Tensor, noise_B: Tensor, **cond: Tensor) -> Tensor:
            parent = getcurrent().parent
            assert parent is not None, "a batched cascade runs in a greenlet per image"
            return parent.switch(Call(self.index, x_BCHW, noise_B, cond, text_caches, self.lora))

        yield predict


def batched_cascade(cascade: Cascade) -> Cascade:
    """Return a cascade of `BatchedStage`s that shares the weights and prompt encoder of `cascade`."""
    stages = [BatchedStage(stage, index) for index, stage in enumerate(cascade.stages)]
    copy = Cascade(stages, text=cascade.text, unconditional=cascade.unconditional)
    copy.texts = cascade.texts
    return copy


class NetworkBatcher:
    """Evaluate a stage's network for the calls of several images at once.

    The text's keys and values are computed once per image and stage, not once per step.
    """

    def __init__(self, stage: Stage, device: torch.device, precision: Precision):
        unet, self.dtype = stage.network.to_device(device, autocast_dtype(device, precision))
        self.unet, self.device = unet.eval(), device
        self._predict = build_predict(self.unet, self.dtype)
        self._lora: tuple[tuple[Fitted, float], ...] = ()  # applied to the network now
        self._applied = ExitStack()
        # The last batch's caches and their concatenation: the next batch usually has the same images.
        self._joined: tuple[list[TextCache], TextCache] | None = None

    def __call__(self, calls: Sequence[Call]) -> list[Tensor]:
        """Return the network's output [R, C, H, W] for each of `calls`, which must have equal keys."""
        self._apply(calls[0].lora)
        cond: dict[str, Any] = {
            name: torch.cat([call.cond[name] for call in calls]) for name in calls[0].cond if name != "text"
        }
        x_BCHW = torch.cat([call.x_RCHW for call in calls])
        noise_B = torch.cat([call.noise_R for call in calls])
        if "text" not in calls[0].cond:
            output_BCHW = self._predict(x_BCHW, noise_B, **cond)
        elif isinstance(self.unet, UNet):
            with autocast(self.device, self.dtype):
                text = self._join([self._text_cache(self.unet, call) for call in calls])
                x_BCHW = x_BCHW.contiguous(memory_format=torch.channels_last)
                output_BCHW = self.unet(x_BCHW, noise_B, text=text, **cond)
        else:
            text_BLD = torch.cat([call.cond["text"] for call in calls])
            output_BCHW = self._predict(x_BCHW, noise_B, text=text_BLD, **cond)
        return list(output_BCHW.split([call.batch_size for call in calls]))

    def _apply(self, lora: tuple[tuple[Fitted, float], ...]) -> None:
        """Apply the LoRA of a batch after removing the previous batch's, if they differ."""
        if lora != self._lora:
            self._applied.close()
            self._lora = ()
            self._applied.enter_context(applied(self.unet, lora))
            self._lora = lora

    @staticmethod
    def _text_cache(unet: UNet, call: Call) -> TextCache:
        """Return the keys and values of the call's text, computed unless an earlier call of the image had it."""
        text_RLD = call.cond["text"]
        for known_RLD, cache in call.text_caches:
            if known_RLD is text_RLD:
                return cache
        cache = unet.cache_text(text_RLD, call.cond.get("text_mask"))
        # Two are enough: inside the guidance interval with the unconditional samples, outside without them.
        call.text_caches[:] = [*call.text_caches[-1:], (text_RLD, cache)]
        return cache

    def _join(self, caches: list[TextCache]) -> TextCache:
        """Concatenate caches along the batch axis."""
        if len(caches) == 1:
            return caches[0]
        known = self._joined
        if known and len(known[0]) == len(caches) and all(a is b for a, b in zip(known[0], caches, strict=True)):
            return known[1]
        context = {
            layer: tuple(torch.cat([cache.context[layer][i] for cache in caches]) for i in (0, 1))
            for layer in caches[0].context
        }
        joined = TextCache(torch.cat([cache.pooled_BE for cache in caches]), context)  # type: ignore[arg-type]
        self._joined = (caches, joined)
        return joined

    def clear(self) -> None:
        """Free the tensors of the last batch."""
        self._joined = None
