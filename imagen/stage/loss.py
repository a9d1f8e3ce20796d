"""From a batch of pictures and texts to what the network sees, and its loss.

Everything random here is a pure function of (seed, global position): see `imagen.diffusion.randomness`.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from imagen.data.loading.batches import Batch
from imagen.devices import sent
from imagen.diffusion import randomness
from imagen.diffusion.objective import Loss, earlier_logsnr, loss, stratified_times
from imagen.diffusion.schedule import ScheduleConfig, build_label, build_schedule, diffuse
from imagen.stage.config import StageConfig
from imagen.stage.resize import upsample


@dataclass(frozen=True)
class Noised:
    """A batch as the network sees it, with what it has to find."""

    x_BCHW: Tensor  # noised pictures, float32, channels-last
    x0_BCHW: Tensor  # what is diffused: the pictures, or their detail
    eps_BCHW: Tensor
    t_B: Tensor  # float64 on the CPU
    times_B: Tensor  # the same, as the device knows it: float32
    logsnr_B: Tensor  # float32
    logsnr_s_B: Tensor  # one reverse step earlier, for a learned variance
    label_B: Tensor  # what the network is told of the noise
    conditions: dict[str, Tensor]  # keyword arguments of the U-Net


class Noising:
    """Noises batches for a stage, computes its loss. `batch_size` is the global one: t is stratified over it.

    `schedule` replaces the stage's: other noise levels more often than sampling has them. The network is told the
    level itself (`build_label`), so the two need not agree. text_length: texts are padded to this at least.
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
        self.objective = stage.objective
        self.schedule = build_schedule(schedule or stage.schedule, stage.resolution)
        self.label, self.low_res_label = build_label(stage.schedule), build_label(stage.low_res_schedule)
        self.low_res_schedule = build_schedule(stage.low_res_schedule, stage.resolution)
        self.low_res_filter = stage.low_res_filter
        self.detail_std = stage.detail_std
        self.seed = seed
        self.batch_size = batch_size
        self.device = device
        self.unconditional_LD = None if unconditional_LD is None else unconditional_LD.to(device)
        self.text_dropout = text_dropout
        self.text_length = text_length

    def __call__(self, batch: Batch) -> Noised:
        """Nothing here waits for the device: what is drawn on the CPU, a few numbers a sample, is sent at once."""
        positions = range(batch.position, batch.position + len(batch))
        t_B = self._times(positions)
        logsnr_B = self.schedule(t_B).float()
        numbers = [t_B.float(), logsnr_B, earlier_logsnr(self.schedule, t_B).float(), self.label(logsnr_B)]
        numbers.append(torch.zeros(len(batch)))
        if batch.text is not None and self.text_dropout > 0:
            dropped_B = randomness.uniform(self.seed, positions, randomness.TEXT_DROPOUT) < self.text_dropout
            numbers[-1] = dropped_B.float()
        if batch.low_res is not None:
            level_B = randomness.uniform(self.seed, positions, randomness.LOW_RES_LEVEL)
            low_logsnr_B = self.low_res_schedule(level_B).float()
            numbers += [low_logsnr_B, self.low_res_label(low_logsnr_B)]
        times_B, logsnr_B, logsnr_s_B, label_B, dropped_B, *low = sent(torch.stack(numbers), self.device).unbind()

        x0_BCHW, low_BCHW = self._pixels(batch.image), self._enlarged(batch)
        if self.detail_std is not None:
            assert low_BCHW is not None
            x0_BCHW = (x0_BCHW - low_BCHW) / self.detail_std
        eps_BCHW = self._normal(x0_BCHW, positions, randomness.EPS)
        return Noised(
            x_BCHW=diffuse(x0_BCHW, eps_BCHW, logsnr_B),
            x0_BCHW=x0_BCHW,
            eps_BCHW=eps_BCHW,
            t_B=t_B,
            times_B=times_B,
            logsnr_B=logsnr_B,
            logsnr_s_B=logsnr_s_B,
            label_B=label_B,
            conditions=self._text(batch, dropped_B > 0.5) | self._low_res(low_BCHW, positions, *low),
        )

    def loss(self, unet: nn.Module, noised: Noised) -> Loss:
        """The loss of each sample: run the forward under autocast, the loss itself is float32."""
        out_BCHW = unet(noised.x_BCHW, noised.label_B, **noised.conditions)
        return loss(
            out_BCHW,
            noised.x0_BCHW,
            noised.eps_BCHW,
            noised.logsnr_B,
            self.objective,
            logsnr_s_B=noised.logsnr_s_B,
        )

    def _times(self, positions: range) -> Tensor:
        """Each global batch is a stratified sample of t, whatever slice of it this is."""
        step, first = divmod(positions.start, self.batch_size)
        u = randomness.uniform(self.seed, [step], randomness.TIME)
        return stratified_times(u, torch.arange(first, first + len(positions)), self.batch_size)

    def _text(self, batch: Batch, dropped_B: Tensor) -> dict[str, Tensor]:
        if batch.text is None or batch.text_mask is None:
            return {}
        text_BLD = sent(batch.text, self.device).float()
        mask_BL = sent(batch.text_mask, self.device)
        if (missing := self.text_length - text_BLD.shape[1]) > 0:
            text_BLD, mask_BL = (
                nn.functional.pad(text_BLD, (0, 0, 0, missing)),
                nn.functional.pad(mask_BL, (0, missing)),
            )
        if self.text_dropout > 0 and self.unconditional_LD is not None:
            text_BLD, mask_BL = drop_text(text_BLD, mask_BL, dropped_B, self.unconditional_LD)
        return {"text": text_BLD, "text_mask": mask_BL}

    def _enlarged(self, batch: Batch) -> Tensor | None:
        """The low-resolution pictures at the size of the others."""
        if batch.low_res is None:
            return None
        height, width = batch.image.shape[-2:]
        return upsample(self._pixels(batch.low_res), (height, width), self.low_res_filter)

    def _low_res(self, low_BCHW: Tensor | None, positions: range, *told: Tensor) -> dict[str, Tensor]:
        """Conditioning augmentation (sec. 2.4 of the paper): noise at a random level a ~ U[0, 1], which is told."""
        if low_BCHW is None:
            return {}
        logsnr_B, label_B = told
        noise_BCHW = self._normal(low_BCHW, positions, randomness.LOW_RES_EPS)
        return {"low_res": diffuse(low_BCHW, noise_BCHW, logsnr_B), "low_res_noise": label_B}

    def _pixels(self, image_BCHW: Tensor) -> Tensor:
        """uint8 to float32 in [-1, 1]."""
        image_BCHW = sent(image_BCHW, self.device).contiguous(memory_format=torch.channels_last)
        return image_BCHW.float() / 127.5 - 1

    def _normal(self, like_BCHW: Tensor, positions: range, purpose: int) -> Tensor:
        return randomness.normal(like_BCHW.shape[1:], self.seed, positions, purpose, self.device)


def drop_text(text_BLD: Tensor, mask_BL: Tensor, dropped_B: Tensor, unconditional_LD: Tensor) -> tuple[Tensor, Tensor]:
    """Put the unconditional embedding [L0, D] in place of the dropped samples' text, with its mask."""
    L = text_BLD.shape[1]
    length = max(L, len(unconditional_LD))
    text_BLD = nn.functional.pad(text_BLD, (0, 0, 0, length - L))
    mask_BL = nn.functional.pad(mask_BL, (0, length - L))
    null_LD = nn.functional.pad(unconditional_LD.to(text_BLD), (0, 0, 0, length - len(unconditional_LD)))
    null_L = torch.arange(length, device=text_BLD.device) < len(unconditional_LD)
    return (
        torch.where(dropped_B[:, None, None], null_LD, text_BLD),
        torch.where(dropped_B[:, None], null_L, mask_BL),
    )
