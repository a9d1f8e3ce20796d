"""One stage, ready to sample: from noise, text and perhaps a smaller picture to a picture."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from imagen.diffusion.guidance import Affine, ClassifierFree, Denoiser, DynamicThreshold, StaticThreshold, predict_x0
from imagen.diffusion.noise import PictureNoise, Variation
from imagen.diffusion.samplers.base import OnStep, step_logsnrs
from imagen.diffusion.schedule import build_label, build_schedule, diffuse
from imagen.errors import UserError
from imagen.models.config import UNetConfig
from imagen.models.unet import ReadOnce, UNet
from imagen.precision import Precision, autocast, autocast_dtype, precision_name
from imagen.stage.config import SamplingConfig, StageConfig
from imagen.stage.editing import Edit, Known
from imagen.stage.inputs import from_uint8, low_res_conditioning, text_conditioning, to_uint8
from imagen.stage.network import Network
from imagen.stage.resize import upsample
from imagen.stage.tiles import Tile, Tiled

Predict = Callable[..., Tensor]  # (x_BCHW, noise_B, **conditioning), as `imagen.models.unet.UNet` is called


@dataclass(repr=False)
class Stage:
    config: StageConfig
    unet: nn.Module  # called as `imagen.models.unet.UNet` is
    info: Mapping[str, Any] = field(default_factory=dict)  # where the weights come from
    sha256: str | None = None  # of the weights' file; None: never saved
    compiled: Mapping[str, Any] | None = None  # options of torch.compile
    _network: Network | None = field(default=None, init=False, repr=False, compare=False)

    def __repr__(self) -> str:
        millions = sum(parameter.numel() for parameter in self.unet.parameters()) / 1e6
        low = "base" if self.config.low_resolution is None else f"{self.config.low_resolution} to"
        return f"<Stage: {low} {self.config.resolution}, {millions:.3g} M parameters>"

    @property
    def network(self) -> Network:
        """`unet` as a device computes it."""
        if self._network is None or self._network.unet is not self.unet or self._network.options != self.compiled:
            self._network = Network(self.unet, self.compiled)
        return self._network

    @torch.no_grad()  # not inference_mode: moving a network that is being trained would make it untrainable
    def sample(
        self,
        seeds: Sequence[int | Variation],
        *,
        size: tuple[int, int],
        settings: SamplingConfig,
        texts: Sequence[Tensor] | None = None,
        unconditional: Tensor | None = None,
        negatives: Sequence[Tensor] | None = None,
        text_length: int = 0,
        low_BChw: Tensor | None = None,
        edit: Edit | None = None,
        tile: Tile | None = None,
        device: torch.device | str = "cpu",
        precision: Precision = "auto",
        on_step: OnStep | None = None,
    ) -> Tensor:
        """Make one uint8 picture a seed, [B, C, *size] on the CPU.

        texts: float embeddings [L_i, D], and unconditional [L0, D], for a U-Net that reads text.
        negatives: what to lead away from in place of `unconditional`, an embedding a picture.
        text_length: L to which texts are padded at least.
        low_BChw: uint8 pictures of the stage before, for a super-resolution stage.
        edit: pictures of this stage's size to begin with or to keep a part of.
        tile: the network sees pieces of the picture.

        Raises UserError if the network's answers are not finite.
        """
        config, device = self.config, torch.device(device)
        dtype = autocast_dtype(device, precision)
        if dtype is None:
            check_float32(self.unet, f"stage {config.resolution} cannot be sampled in fp32")
        shape = (config.unet.image_channels, *size)
        # A stage's random numbers are named by its resolution, not by its place, so that a super-resolution
        # stage alone continues exactly as in the cascade. Odd streams are the conditioning noise: another level
        # does not change the sampler's noise.
        stream = 2 * config.resolution
        noise = PictureNoise(seeds, shape, device, stream=stream)

        cond: dict[str, Tensor] = {}
        uncond: dict[str, Tensor] = {}
        detail: Detail | None = None
        if config.unet.text_width is not None:
            if texts is None or unconditional is None:
                raise ValueError("this stage reads text: texts and unconditional are needed")
            cond, uncond = text_conditioning(texts, negatives or [unconditional] * len(texts), device, text_length)
        if config.low_resolution is not None:
            if low_BChw is None:
                raise ValueError("this stage enlarges pictures: low_BChw is needed")
            eps_BCHW = PictureNoise(seeds, shape, device, stream=stream + 1)()
            enlarged = upsample(from_uint8(low_BChw.to(device)), size, config.low_res_filter)
            cond |= low_res_conditioning(
                enlarged, settings.low_res_noise, config.low_res_schedule, config.resolution, eps_BCHW
            )
            if config.detail_std is not None:
                detail = Detail(enlarged, config.detail_std)

        logsnrs = step_logsnrs(
            build_schedule(config.schedule, config.resolution),
            settings.steps,
            spacing=settings.spacing,
            logsnr_range=settings.logsnr_range,
        )
        x_BCHW = noise()
        if edit is not None:
            edit, logsnrs = edit.to(device), edit.levels(logsnrs)
            if edit.strength < 1:
                begin_BCHW = edit.picture_BCHW if detail is None else detail.of(edit.picture_BCHW)
                x_BCHW = diffuse(begin_BCHW, x_BCHW, logsnrs[:1].to(device))

        with self.predicting(device, dtype) as predict:
            x_BCHW = settings.build_sampler().sample(
                denoiser(predict, config, settings, cond, uncond, detail, edit, tile),
                x_BCHW,
                logsnrs,
                noise=noise,
                on_step=on_step if detail is None else detail.reporting(on_step),
            )
        if not x_BCHW.isfinite().all():
            raise UserError(
                f"stage {config.resolution} made values that are not finite; "
                "sample with precision fp32, and if that does not help, with weights from before the training diverged"
            )
        return to_uint8(x_BCHW if detail is None else detail.picture(x_BCHW))

    @contextmanager
    def predicting(self, device: torch.device, dtype: torch.dtype | None) -> Iterator[Predict]:
        """The U-Net on `device`, out of training mode, in arithmetic of `dtype`.

        All that `sample` asks of a network passes here: `imagen.serve` gathers the calls of several pictures.
        """
        unet, around = self.network.on(device, dtype)
        training = unet.training
        unet.eval()
        try:
            yield predict_by(unet, around)
        finally:
            unet.train(training)

    def offload(self) -> None:
        """Leave the device, to whose memory the weights come back with the next `sample`."""
        self.network.leave()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


@dataclass(frozen=True)
class Detail:
    """What a stage with `detail_std` diffuses: (picture - low) / std."""

    low_BCHW: Tensor  # the low-resolution pictures, enlarged, without conditioning noise
    std: float

    def picture(self, detail_BCHW: Tensor) -> Tensor:
        return self.low_BCHW + self.std * detail_BCHW

    def of(self, picture_BCHW: Tensor) -> Tensor:
        return (picture_BCHW - self.low_BCHW) / self.std

    def in_pixels(self, denoise: Denoiser, change: Callable[[Denoiser], Denoiser]) -> Denoiser:
        """`denoise` with its estimates changed where they are pictures: thresholds are limits of pixels."""
        return Affine(change(Affine(denoise, self.std, self.low_BCHW)), 1 / self.std, -self.low_BCHW / self.std)

    def reporting(self, on_step: OnStep | None) -> OnStep | None:
        """`on_step` for pictures."""
        if on_step is None:
            return None
        return lambda i, steps, x_BCHW, x0_BCHW: on_step(i, steps, self.picture(x_BCHW), self.picture(x0_BCHW))


def predict_by(unet: nn.Module, dtype: torch.dtype | None) -> Predict:
    """`unet`, autocast to `dtype`. Texts are read once; see `ReadOnce`."""
    reading: Predict = ReadOnce(unet) if isinstance(unet, UNet) else unet

    def predict(x_BCHW: Tensor, noise_B: Tensor, **cond: Tensor) -> Tensor:
        with autocast(x_BCHW.device, dtype):
            answer = (reading if "text" in cond else unet)(
                x_BCHW.contiguous(memory_format=torch.channels_last), noise_B, **cond
            )
        # The next replay of a CUDA graph writes where this one's answer lies, and samplers remember answers.
        return answer.clone() if answer.is_cuda else answer

    return predict


def without_variance(predict: Predict, channels: int) -> Predict:
    """`predict` without the second half of its answer, the learned variance, if it has one."""
    return lambda x_BCHW, noise_B, **cond: predict(x_BCHW, noise_B, **cond)[:, :channels]


def denoiser(
    predict: Predict,
    config: StageConfig,
    settings: SamplingConfig,
    cond: Mapping[str, Tensor],
    uncond: Mapping[str, Tensor],
    detail: Detail | None = None,
    edit: Edit | None = None,
    tile: Tile | None = None,
) -> Denoiser:
    """The network as the sampler sees it: x0 estimates, guided, thresholded, the known part of a picture in place."""
    if settings.variance == "fixed":
        predict = without_variance(predict, config.unet.image_channels)
    raw = predict if tile is None else Tiled(predict, tile)
    weight = settings.guidance if uncond else 1.0  # a stage without text has nothing to guide
    denoise: Denoiser = ClassifierFree(
        predict_x0(raw, config.objective.prediction, build_label(config.schedule)),
        cond,
        uncond,
        weight,
        settings.guidance_interval,
        settings.guidance_rescale,
    )

    def in_range(denoise: Denoiser) -> Denoiser:
        if settings.threshold == "static":
            denoise = StaticThreshold(denoise)
        elif settings.threshold == "dynamic":
            denoise = DynamicThreshold(denoise, settings.percentile, settings.max_scale)
        if edit is not None and edit.mask_B1HW is not None:
            denoise = Known(denoise, edit.picture_BCHW, edit.mask_B1HW)
        return denoise

    return in_range(denoise) if detail is None else detail.in_pixels(denoise, in_range)


def build_unet(config: UNetConfig, tensors: dict[str, Tensor], where: Path, dtype: torch.dtype | None = None) -> UNet:
    """The U-Net with these weights (float32); UserError unless names and shapes are exactly its own.

    dtype: of the weights of convolutions and linear layers, which autocast would cast to it at every call.
    """
    with torch.device("meta"):  # no time or memory for weights that are replaced at once
        unet = UNet(config)
    expected = {key: tuple(value.shape) for key, value in unet.state_dict().items()}
    for key, shape in expected.items():
        if key not in tensors:
            raise UserError(f"{where}: tensor {key!r} is missing; the weights are not those of unet in cascade.json")
        if tuple(tensors[key].shape) != shape:
            raise UserError(f"{where}: tensor {key!r} has shape {tuple(tensors[key].shape)}, the U-Net wants {shape}")
        if not tensors[key].is_floating_point():
            raise UserError(f"{where}: tensor {key!r} is of {tensors[key].dtype}; weights are floating-point numbers")
    for key in tensors:
        if key not in expected:
            raise UserError(f"{where}: tensor {key!r} is unknown to the U-Net of cascade.json")
    held = {key: value.to(dtype if dtype and value.ndim > 1 else torch.float32) for key, value in tensors.items()}
    unet.load_state_dict(held, assign=True)
    return unet.eval().requires_grad_(False)


def check_float32(unet: nn.Module, what: str) -> None:
    """UserError, beginning with `what`, if the weights were rounded when they were loaded."""
    if any(parameter.dtype != torch.float32 for parameter in unet.parameters()):
        held = {parameter.dtype for parameter in unet.parameters()} - {torch.float32}
        raise UserError(
            f"{what}: its weights were loaded in {precision_name(held.pop())}; load the cascade with precision fp32"
        )
