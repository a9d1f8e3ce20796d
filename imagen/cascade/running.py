"""A plan through the stages of a cascade, batch by batch: text once, then picture after picture."""

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from imagen.cascade.plan import Plan
from imagen.devices import set_up
from imagen.progress import progress_bar
from imagen.stage.editing import edit_of
from imagen.stage.inputs import from_images, to_images

if TYPE_CHECKING:
    from imagen.cascade.cascade import Cascade

AHEAD = 1024  # prompts that are encoded together
OFFLOADED = 8  # batches that pass through a stage in one visit to the device, where weights come and go


class Preview(NamedTuple):
    """What `on_step` is called with after each step of the sampler."""

    stage: int  # index in the cascade
    step: int  # 0 .. steps - 1
    steps: int
    pictures: range  # which of the plan's pictures these are
    x0_BCHW: Tensor  # the current estimate, in [-1, 1] where thresholded


OnPreview = Callable[[Preview], None]


def run(
    cascade: "Cascade",
    plan: Plan,
    batches: Iterable[range] | None = None,
    *,
    progress: bool = True,
    on_step: OnPreview | None = None,
) -> Generator[Image.Image, None, None]:
    """See `Cascade.run`."""
    set_up(plan.device)
    batches = plan.batches() if batches is None else list(batches)
    bars = [
        progress_bar(
            total=sum(-(-len(batch) // rows) for batch in batches) * settings.steps,
            desc=f"{width}x{height}",
            unit="step",
            disable=not progress,
        )
        for settings, rows, (height, width) in zip(plan.settings, plan.rows, plan.sizes, strict=True)
    ]
    together = OFFLOADED if plan.offload else 1
    try:
        for begin in range(0, len(batches), together):
            yield from _through(cascade, plan, batches[begin : begin + together], bars, on_step)
    finally:
        for bar in bars:
            bar.close()


def _through(
    cascade: "Cascade", plan: Plan, batches: Sequence[range], bars: Sequence[tqdm], on_step: OnPreview | None
) -> Iterator[Image.Image]:
    """Some batches through all stages, one stage after the other."""
    texts = [_embed(cascade, plan, batch) for batch in batches]
    pictures = [None if plan.start is None else _start(cascade, plan, batch) for batch in batches]
    for number, bar in enumerate(bars):
        rows = plan.rows[number]
        for i, batch in enumerate(batches):
            before = pictures[i]
            parts = [batch[begin : begin + rows] for begin in range(0, len(batch), rows)]
            lows = [None] * len(parts) if before is None else before.split(rows)
            done = [
                _stage(cascade, plan, number, part, texts[i], low, bar, on_step)
                for part, low in zip(parts, lows, strict=True)
            ]
            pictures[i] = torch.cat(done)
        if plan.offload:
            cascade.stages[plan.first + number].offload()
    height, width = plan.crop
    for picture in pictures:
        assert picture is not None
        yield from to_images(picture[..., :height, :width])


def _stage(
    cascade: "Cascade",
    plan: Plan,
    number: int,
    pictures: range,
    texts: dict[str, Tensor],
    low_BChw: Tensor | None,
    bar: tqdm,
    on_step: OnPreview | None,
) -> Tensor:
    """Some of the plan's pictures through its `number`-th stage: uint8 BChw (None for a base) to uint8 BCHW."""
    index = plan.first + number
    stage = cascade.stages[index]

    def report(step: int, steps: int, x_BCHW: Tensor, x0_BCHW: Tensor) -> None:
        bar.update()
        if on_step is not None:
            on_step(Preview(index, step, steps, pictures, x0_BCHW))

    edit = None
    if plan.init is not None:
        edit = edit_of(
            [plan.init[i] for i in pictures],
            None if plan.masks is None else [plan.masks[i] for i in pictures],
            size=plan.sizes[number],
            strength=plan.strength[number],
            channels=stage.config.unet.image_channels,
        )
    return stage.sample(
        [plan.seeds[i] for i in pictures],
        size=plan.sizes[number],
        settings=plan.settings[number],
        texts=[texts[plan.prompts[i]] for i in pictures],
        unconditional=cascade.unconditional,
        negatives=[texts[plan.negatives[i]] for i in pictures],
        text_length=0 if cascade.text is None else cascade.text.max_tokens,
        low_BChw=low_BChw,
        edit=edit,
        tile=plan.tiles[number],
        device=plan.device,
        precision=plan.precision,
        generator=plan.noise,
        on_step=report,
    )


def _start(cascade: "Cascade", plan: Plan, batch: range) -> Tensor:
    """The pictures to enlarge, uint8, mirrored at the right and the bottom up to the size that the stages take."""
    assert plan.start is not None and plan.start_size is not None
    images = [plan.start[i] for i in batch]
    pictures_BChw = from_images(images, cascade.stages[plan.first].config.unet.image_channels)
    (height, width), (h, w) = plan.start_size, pictures_BChw.shape[-2:]
    if (height, width) == (h, w):
        return pictures_BChw
    padding = ((0, 0), (0, 0), (0, height - h), (0, width - w))
    return torch.from_numpy(np.pad(pictures_BChw.numpy(), padding, mode="symmetric"))


def _embed(cascade: "Cascade", plan: Plan, batch: range) -> dict[str, Tensor]:
    """Text embeddings [L, D] of the batch's prompts; empty if no stage of the plan reads text."""
    prompts = [*plan.prompts[batch.start : batch.stop], *plan.negatives[batch.start : batch.stop]]
    stages = cascade.stages[plan.first : plan.first + len(plan.settings)]
    if cascade.texts is None or all(stage.config.unet.text_width is None for stage in stages):
        return dict.fromkeys(prompts, torch.empty(0))
    if any(prompt not in cascade.texts for prompt in prompts):  # so many at once that loading the encoder pays
        ahead = slice(batch.start, max(batch.stop, batch.start + AHEAD))
        cascade.texts((*plan.prompts[ahead], *plan.negatives[ahead]), plan.device, plan.vram)
    return cascade.texts(prompts, plan.device, plan.vram)
