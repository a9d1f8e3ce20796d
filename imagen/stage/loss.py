"""Apply the forward process and compute the loss of a stage in training.

All randomness is a pure function of (seed, global position): see `imagen.diffusion.randomness`.

Shapes: see `imagen.stage.inputs`.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from imagen.devices import send
from imagen.diffusion import randomness
from imagen.diffusion.objective import Loss, earlier_logsnr, loss, stratified_times
from imagen.diffusion.schedule import ScheduleConfig, build_label, build_schedule, diffuse
from imagen.stage.config import StageConfig
from imagen.stage.detail import DetailTransform
from imagen.stage.inputs import (
    augmentation_noise,
    drop_text,
    from_uint8,
    low_res_inputs,
    text_inputs,
    upsample_low_res,
)
from imagen.text.embeddings import pad_to_length


class CleanBatch(Protocol):
    """The attributes of a batch that the forward process reads, as in `imagen.data.loading.batches.Batch`."""

    @property
    def position(self) -> int:
        """Return the global position of the first sample."""
        ...

    @property
    def image(self) -> Tensor:
        """Return clean images, uint8 [B, C, H, W]."""
        ...

    @property
    def low_res(self) -> Tensor | None:
        """Return the low-resolution images, uint8 [B, C, h, w]."""
        ...

    @property
    def text(self) -> Tensor | None:
        """Return text embeddings, float32 [B, L, D]."""
        ...

    @property
    def text_mask(self) -> Tensor | None:
        """Return the mask of the embeddings, bool [B, L], True at tokens."""
        ...


@dataclass(frozen=True)
class NoisedBatch:
    """A batch after the forward process: the inputs of the U-Net and of its loss."""

    x_BCHW: Tensor  # noised images, float32, channels-last
    x0_BCHW: Tensor  # clean images, or their detail
    eps_BCHW: Tensor
    t_B: Tensor  # float64 on the CPU
    times_B: Tensor  # the same as float32 on the device
    logsnr_B: Tensor  # float32
    logsnr_s_B: Tensor  # one reverse step earlier, for a learned variance
    label_B: Tensor  # noise labels
    conditions: dict[str, Tensor]  # further arguments of the U-Net


class ForwardProcess:
    """Add noise to the batches of a stage and compute its loss.

    batch_size: of the global batch, over which t is stratified.
    schedule: replaces the stage's schedule, for other noise levels in training than in sampling. The two may differ,
        because the U-Net is conditioned on the noise level and not on t (`build_label`).
    text_length: pad texts to at least this many tokens.
    """

    def __init__(
        self,
        stage: StageConfig,
        *,
        seed: int,
        batch_size: int,
        device: torch.device,
        unconditional_LD: Tensor | None = None,
        text_dropout: float = 0.0,
        schedule: ScheduleConfig | None = None,
        text_length: int = 0,
    ):
        self.stage = stage
        self.schedule = build_schedule(schedule or stage.schedule, stage.resolution)
        self.label = build_label(stage.schedule)
        self.seed = seed
        self.batch_size = batch_size
        self.device = device
        self.unconditional_LD = None if unconditional_LD is None else unconditional_LD.to(device)
        self.text_dropout = text_dropout
        self.text_length = text_length

    def __call__(self, batch: CleanBatch) -> NoisedBatch:
        """Draw noise levels and noise, and build the inputs of the U-Net.

        Never synchronises with the device: the few numbers per sample that are drawn on the CPU are copied to it in one
        asynchronous transfer.
        """
        B = len(batch.image)
        positions = range(batch.position, batch.position + B)
        t_B = self._times(positions)
        logsnr_B = self.schedule(t_B).float()
        numbers = [t_B.float(), logsnr_B, earlier_logsnr(self.schedule, t_B).float(), self.label(logsnr_B)]
        numbers.append(torch.zeros(B))
        if batch.text is not None and self.text_dropout > 0:
            dropped_B = randomness.uniform(self.seed, positions, randomness.TEXT_DROPOUT) < self.text_dropout
            numbers[-1] = dropped_B.float()
        if batch.low_res is not None:
            numbers += augmentation_noise(
                self.stage, randomness.uniform(self.seed, positions, randomness.LOW_RES_LEVEL)
            )
        times_B, logsnr_B, logsnr_s_B, label_B, dropped_B, *low = send(torch.stack(numbers), self.device).unbind()

        x0_BCHW = from_uint8(self._sent_image(batch.image))
        conditions = self._text(batch, dropped_B > 0.5)
        if batch.low_res is not None:
            height, width = batch.image.shape[-2:]
            low_BCHW = upsample_low_res(self._sent_image(batch.low_res), (height, width), self.stage)
            if detail := DetailTransform.of(self.stage, low_BCHW):
                x0_BCHW = detail.encode(x0_BCHW)
            conditions |= low_res_inputs(low_BCHW, self._normal(low_BCHW, positions, randomness.LOW_RES_EPS), *low)
        eps_BCHW = self._normal(x0_BCHW, positions, randomness.EPS)
        return NoisedBatch(
            x_BCHW=diffuse(x0_BCHW, eps_BCHW, logsnr_B),
            x0_BCHW=x0_BCHW,
            eps_BCHW=eps_BCHW,
            t_B=t_B,
            times_B=times_B,
            logsnr_B=logsnr_B,
            logsnr_s_B=logsnr_s_B,
            label_B=label_B,
            conditions=conditions,
        )

    def loss(self, unet: nn.Module, noised: NoisedBatch) -> Loss:
        """Evaluate `unet` and return the loss of each sample. Call it under autocast; the loss itself is float32."""
        out_BCHW = unet(noised.x_BCHW, noised.label_B, **noised.conditions)
        return loss(
            out_BCHW,
            noised.x0_BCHW,
            noised.eps_BCHW,
            noised.logsnr_B,
            self.stage.objective,
            logsnr_s_B=noised.logsnr_s_B,
        )

    def _times(self, positions: range) -> Tensor:
        """Return the times of these positions, so that every global batch is a stratified sample of t."""
        step, first = divmod(positions.start, self.batch_size)
        u = randomness.uniform(self.seed, [step], randomness.TIME)
        return stratified_times(u, torch.arange(first, first + len(positions)), self.batch_size)

    def _text(self, batch: CleanBatch, dropped_B: Tensor) -> dict[str, Tensor]:
        if batch.text is None or batch.text_mask is None:
            return {}
        text_BLD, mask_BL = send(batch.text, self.device).float(), send(batch.text_mask, self.device)
        text_BLD, mask_BL = pad_to_length(text_BLD, mask_BL, self.text_length)
        if self.text_dropout > 0 and self.unconditional_LD is not None:
            text_BLD, mask_BL = drop_text(text_BLD, mask_BL, dropped_B, self.unconditional_LD)
        return text_inputs(text_BLD, mask_BL)

    def _sent_image(self, image_BCHW: Tensor) -> Tensor:
        return send(image_BCHW, self.device).contiguous(memory_format=torch.channels_last)

    def _normal(self, like_BCHW: Tensor, positions: range, purpose: int) -> Tensor:
        return randomness.normal(like_BCHW.shape[1:], self.seed, positions, purpose, self.device)
