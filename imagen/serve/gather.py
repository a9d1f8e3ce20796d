"""Calls of a stage's network, gathered from pictures that are being made at the same time.

Each picture runs the very code of `imagen sample` in a greenlet of its own. Where that code calls the network, the
greenlet stops, and a `Call` goes to whoever runs it; when the answer of the whole batch is there, the picture's part
goes back in. So sampler, steps, guidance and seed are each picture's own, and only the network is shared.

Shapes: R rows of a call (a guided picture has two), B rows of a batch, CHW a picture.
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

Reading = tuple[Tensor, TextCache]  # a text, and what the U-Net made of it


@dataclass(eq=False)
class Call:
    """What a picture asks of a stage's network."""

    stage: int  # index in the cascade
    x_RCHW: Tensor
    noise_R: Tensor
    cond: dict[str, Tensor]  # R first
    readings: list[Reading] = field(default_factory=list)  # of this picture at this stage, from the calls before
    lora: tuple[tuple[Fitted, float], ...] = ()

    @property
    def rows(self) -> int:
        return len(self.x_RCHW)

    @property
    def key(self) -> tuple[Any, ...]:
        """Calls of equal keys fit into one batch."""
        shapes = sorted((name, tuple(value.shape[1:])) for name, value in self.cond.items())
        lora = tuple((fitted.adapter.sha256, weight) for fitted, weight in self.lora)
        return (self.stage, tuple(self.x_RCHW.shape[1:]), lora, *shapes)


class Gathered(Stage):
    """A stage whose calls go to the parent of the greenlet that makes them."""

    def __init__(self, stage: Stage, index: int):
        super().__init__(stage.config, stage.unet, stage.info, stage.sha256, adapters=stage.adapters)
        self.index = index

    @contextmanager
    def loaded_unet(self, device: torch.device, dtype: torch.dtype | None) -> Iterator[Predict]:
        readings: list[Reading] = []

        def predict(x_BCHW: Tensor, noise_B: Tensor, **cond: Tensor) -> Tensor:
            parent = getcurrent().parent
            assert parent is not None, "pictures of a gathered cascade are made in greenlets"
            return parent.switch(Call(self.index, x_BCHW, noise_B, cond, readings, self.lora))

        yield predict


def gathered(cascade: Cascade) -> Cascade:
    """The same cascade, its weights and texts shared, whose networks' calls are for others to answer."""
    stages = [Gathered(stage, index) for index, stage in enumerate(cascade.stages)]
    copy = Cascade(stages, text=cascade.text, unconditional=cascade.unconditional)
    copy.texts = cascade.texts
    return copy


class Answering:
    """A stage's network, for the calls of several pictures at once. Each text is read once."""

    def __init__(self, stage: Stage, device: torch.device, precision: Precision):
        unet, self.dtype = stage.network.to_device(device, autocast_dtype(device, precision))
        self.unet, self.device = unet.eval(), device
        self._predict = build_predict(self.unet, self.dtype)
        self._lora: tuple[tuple[Fitted, float], ...] = ()  # applied to the weights now
        self._applied = ExitStack()
        # Of the last batch, which mostly is the next one, too: its texts, and all of them together.
        self._joined: tuple[list[TextCache], TextCache] | None = None

    def __call__(self, calls: Sequence[Call]) -> list[Tensor]:
        """The answers [R, C, H, W] to calls of equal keys."""
        self._apply(calls[0].lora)
        cond: dict[str, Any] = {
            name: torch.cat([call.cond[name] for call in calls]) for name in calls[0].cond if name != "text"
        }
        x_BCHW = torch.cat([call.x_RCHW for call in calls])
        noise_B = torch.cat([call.noise_R for call in calls])
        if "text" not in calls[0].cond:
            answer = self._predict(x_BCHW, noise_B, **cond)
        elif isinstance(self.unet, UNet):
            with autocast(self.device, self.dtype):
                text = self._join([self._read(self.unet, call) for call in calls])
                answer = self.unet(x_BCHW.contiguous(memory_format=torch.channels_last), noise_B, text=text, **cond)
        else:
            text_BLD = torch.cat([call.cond["text"] for call in calls])
            answer = self._predict(x_BCHW, noise_B, text=text_BLD, **cond)
        return list(answer.split([call.rows for call in calls]))

    def _apply(self, lora: tuple[tuple[Fitted, float], ...]) -> None:
        """Change the weights if the last calls used another LoRA."""
        if lora != self._lora:
            self._applied.close()
            self._lora = ()
            self._applied.enter_context(applied(self.unet, lora))
            self._lora = lora

    @staticmethod
    def _read(unet: UNet, call: Call) -> TextCache:
        text_RLD = call.cond["text"]
        for known, reading in call.readings:
            if known is text_RLD:
                return reading
        reading = unet.cache_text(text_RLD, call.cond.get("text_mask"))
        call.readings[:] = [*call.readings[-1:], (text_RLD, reading)]  # two: with and without the unguided half
        return reading

    def _join(self, readings: list[TextCache]) -> TextCache:
        if len(readings) == 1:
            return readings[0]
        known = self._joined
        if known and len(known[0]) == len(readings) and all(a is b for a, b in zip(known[0], readings, strict=True)):
            return known[1]
        context = {
            layer: tuple(torch.cat([reading.context[layer][i] for reading in readings]) for i in (0, 1))
            for layer in readings[0].context
        }
        joined = TextCache(torch.cat([reading.pooled_BE for reading in readings]), context)  # type: ignore[arg-type]
        self._joined = (readings, joined)
        return joined

    def forget(self) -> None:
        """Free what is remembered of the last batch."""
        self._joined = None
