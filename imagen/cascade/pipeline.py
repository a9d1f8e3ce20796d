"""Run a request through the stages of a cascade, batch by batch: encode prompts once, then sample stage by stage."""

import itertools
from collections.abc import Callable, Generator, Iterable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from imagen.cascade.request import Request
from imagen.cascade.texts import PromptEncoder
from imagen.devices import set_up
from imagen.progress import progress_bar
from imagen.stage.editing import Edit, build_edit
from imagen.stage.inputs import from_images
from imagen.stage.sampling import Stage

AHEAD = 1024  # prompts that are encoded together
OFFLOADED = 8  # batches per stage between two transfers of weights, with offloading


class Preview(NamedTuple):
    """The argument of `on_step`, which is called after each sampler step."""

    stage: int  # index in the cascade
    step: int  # 0 .. steps - 1
    steps: int
    pictures: range  # numbers of these images in the request
    x0_BCHW: Tensor  # the current estimate, in [-1, 1] where thresholded


OnPreview = Callable[[Preview], None]


def run_request(
    request: Request,
    stages: Sequence[Stage],
    texts: PromptEncoder | None,
    batches: Iterable[range] | None = None,
    *,
    progress: bool = True,
    on_step: OnPreview | None = None,
) -> Generator[Tensor, None, None]:
    """Yield the images of a request in order, uint8 [C, H, W] on the CPU, each as soon as its batch is done.

    stages: the stages that run. texts: None without text. batches, progress, on_step: see `Cascade.run`.
    """
    set_up(request.device)
    stages = [stage.adapted(dict(request.lora)) for stage in stages]
    batches = request.batches() if batches is None else list(batches)
    bars = [
        progress_bar(
            total=sum(-(-len(batch) // micro_batch) for batch in batches) * settings.steps,
            desc=f"{width}x{height}",
            unit="step",
            disable=not progress,
        )
        for settings, micro_batch, (height, width) in zip(
            request.settings, request.micro_batch, request.sizes, strict=True
        )
    ]
    together = OFFLOADED if request.offload else 1
    height, width = request.crop
    try:
        for begin in range(0, len(batches), together):
            group = batches[begin : begin + together]
            embeddings = [_embed(request, stages, texts, batches, begin + i) for i in range(len(group))]
            images: list[Tensor | None] = [_start(request, stages[0], batch) for batch in group]
            for number, (stage, bar) in enumerate(zip(stages, bars, strict=True)):
                for i, batch in enumerate(group):
                    images[i] = _run_stage(
                        request, number, stage, texts, batch, embeddings[i], images[i], bar=bar, on_step=on_step
                    )
                if request.offload:
                    stage.offload()
            for images_BCHW in images:
                assert images_BCHW is not None
                yield from images_BCHW[..., :height, :width]
    finally:
        for bar in bars:
            bar.close()


def _run_stage(
    request: Request,
    number: int,
    stage: Stage,
    texts: PromptEncoder | None,
    batch: range,
    embeddings: Sequence[tuple[Tensor, Tensor]],
    low_BChw: Tensor | None,
    *,
    bar: tqdm,
    on_step: OnPreview | None,
) -> Tensor:
    """Sample a batch with stage `number` of the request: uint8 BChw (None for a base model) to uint8 BCHW.

    embeddings: of the prompt and negative prompt of each image.
    """
    done = []
    for begin in range(0, len(batch), request.micro_batch[number]):
        part = slice(begin, begin + request.micro_batch[number])
        pictures = batch[part]

        def report(step: int, steps: int, x_BCHW: Tensor, x0_BCHW: Tensor, pictures: range = pictures) -> None:
            bar.update()
            if on_step is not None:
                on_step(Preview(request.first_stage + number, step, steps, pictures, x0_BCHW))

        images_BCHW = stage.sample(
            [request.seeds[i] for i in pictures],
            size=request.sizes[number],
            settings=request.settings[number],
            texts=[text for text, _ in embeddings[part]],
            negatives=[negative for _, negative in embeddings[part]],
            unconditional=None if texts is None else texts.unconditional,
            text_length=0 if texts is None else texts.config.max_tokens,
            low_BChw=None if low_BChw is None else low_BChw[part],
            edit=_edit(request, number, stage, pictures),
            tile=request.tiles[number],
            device=request.device,
            precision=request.precision,
            generator=request.noise,
            on_step=report,
        )
        done.append(images_BCHW)
    return torch.cat(done)


def _edit(request: Request, number: int, stage: Stage, pictures: range) -> Edit | None:
    """Return init images and masks at the size of the request's stage `number`."""
    if request.init is None:
        return None
    return build_edit(
        [request.init[i] for i in pictures],
        None if request.masks is None else [request.masks[i] for i in pictures],
        size=request.sizes[number],
        strength=request.strength[number],
        channels=stage.config.unet.image_channels,
    )


def _start(request: Request, stage: Stage, batch: range) -> Tensor | None:
    """Return the images to upsample, uint8, padded by reflection at the right and bottom to `start_size`."""
    if request.start is None or request.start_size is None:
        return None
    images_BChw = from_images([request.start[i] for i in batch], stage.config.unet.image_channels)
    (height, width), (h, w) = request.start_size, images_BChw.shape[-2:]
    if (height, width) == (h, w):
        return images_BChw
    padding = ((0, 0), (0, 0), (0, height - h), (0, width - w))
    return torch.from_numpy(np.pad(images_BChw.numpy(), padding, mode="symmetric"))


def _embed(
    request: Request, stages: Sequence[Stage], texts: PromptEncoder | None, batches: Sequence[range], number: int
) -> list[tuple[Tensor, Tensor]]:
    """Return the embeddings [L, D] of the prompt and negative prompt of each image of batch `number`.

    They are empty without text conditioning. Also encodes the prompts of the batches that follow.
    """
    batch = batches[number]
    pairs = [(request.prompts[i], request.negatives[i]) for i in batch]
    if texts is None or all(stage.config.unet.text_width is None for stage in stages):
        return [(torch.empty(0), torch.empty(0))] * len(pairs)
    wanted = [prompt for pair in pairs for prompt in pair if isinstance(prompt, str)]
    if any(prompt not in texts for prompt in wanted):  # encode many at once, to amortise loading the encoder
        following = itertools.chain.from_iterable(itertools.islice(batches, number, None))
        ahead = list(itertools.islice(following, max(len(batch), AHEAD)))
        every = [of_images[i] for of_images in (request.prompts, request.negatives) for i in ahead]
        texts([prompt for prompt in every if isinstance(prompt, str)], request.device, request.vram)
    known = texts(wanted, request.device, request.vram)
    embedded = [known[prompt] if isinstance(prompt, str) else prompt for pair in pairs for prompt in pair]
    return list(zip(embedded[::2], embedded[1::2], strict=True))
