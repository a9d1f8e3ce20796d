"""Sample an image with one stage, from noise, text and, for super-resolution, a low-resolution image."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from imagen.diffusion.noise import NOISES, NoiseKind, Variation
from imagen.diffusion.samplers.base import OnStep, step_logsnrs
from imagen.diffusion.schedule import build_schedule, diffuse
from imagen.errors import UserError
from imagen.lora import Fitted, applied
from imagen.models.unet import UNet
from imagen.precision import Precision, autocast_dtype
from imagen.stage.config import SamplingConfig, StageConfig
from imagen.stage.denoiser import Predict, build_compiled_denoisers, build_conditioning, build_denoiser, build_predict
from imagen.stage.editing import Edit
from imagen.stage.inputs import to_uint8
from imagen.stage.network import Network
from imagen.stage.tiles import Tile
from imagen.stage.weights import check_float32

FAST = "fast"  # name of the adapter that was distilled for `Stage.fast`


@dataclass(repr=False)
class Stage:
    """One model of a cascade, with its weights."""

    config: StageConfig
    unet: nn.Module  # called as `imagen.models.unet.UNet` is
    info: Mapping[str, Any] = field(default_factory=dict)  # origin of the weights
    sha256: str | None = None  # of the weights' file; None: never saved
    compiled: Mapping[str, Any] | None = None  # options of torch.compile
    fast: SamplingConfig | None = None  # settings of few steps, for an adapter of the name FAST if there is one
    adapters: dict[str, Fitted] = field(default_factory=dict, repr=False)  # loaded LoRA for this stage, by name
    lora: tuple[tuple[Fitted, float], ...] = field(default=(), repr=False)  # LoRA in use, with their weights
    _network: Network | None = field(default=None, init=False, repr=False, compare=False)

    def __repr__(self) -> str:
        millions = sum(parameter.numel() for parameter in self.unet.parameters()) / 1e6
        low = "base" if self.config.low_resolution is None else f"{self.config.low_resolution} to"
        return f"<Stage: {low} {self.config.resolution}, {millions:.3g} M parameters>"

    @property
    def network(self) -> Network:
        """The U-Net on its device."""
        if self._network is None or self._network.unet is not self.unet or self._network.options != self.compiled:
            self._network = Network(self.unet, self.compiled)
        return self._network

    def adapted(self, weights: Mapping[str, float]) -> "Stage":
        """Return a stage that uses `adapters` with these weights and shares the network. Other names are ignored."""
        lora = tuple((self.adapters[name], weight) for name, weight in weights.items() if name in self.adapters)
        if not lora:
            return self
        _ = self.network  # create it first, so that both stages share it
        stage = copy(self)
        stage.lora = lora
        return stage

    @torch.no_grad()  # not inference_mode, which would make the weights that it moves unusable in training
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
        generator: NoiseKind = "philox",
        on_step: OnStep | None = None,
    ) -> Tensor:
        """Sample one uint8 image per seed, [B, C, *size] on the CPU.

        texts: float embeddings [L_i, D]; unconditional: the unconditional embedding [L0, D]. For a U-Net with text.
        negatives: embeddings of negative prompts, one per image, in place of `unconditional`.
        text_length: pad texts to at least this many tokens.
        low_BChw: uint8 images of the previous stage, for a super-resolution stage.
        edit: images of this stage's size, for image-to-image and inpainting.
        tile: if given, the U-Net processes tiles of the images.
        generator: the noise generator.

        Raises UserError if the result is not finite, ValueError if an input that the stage needs is missing.
        """
        config, device = self.config, torch.device(device)
        dtype = autocast_dtype(device, precision)
        if dtype is None:
            check_float32(self.unet, f"stage {config.resolution} cannot be sampled in fp32")
        shape = (config.unet.image_channels, *size)
        # Streams depend on the stage's resolution, not on its index, so that a super-resolution stage alone gives the
        # same result as in the cascade. Odd streams are for conditioning augmentation, so that its level does not
        # change the sampler's noise.
        stream = 2 * config.resolution
        noise = NOISES[generator](seeds, shape, device, stream=stream)
        if texts is not None and not negatives and unconditional is not None:
            negatives = [unconditional] * len(texts)
        conditioning = build_conditioning(
            config,
            settings,
            size=size,
            device=device,
            texts=texts,
            negatives=negatives,
            text_length=text_length,
            low_BChw=low_BChw,
            augmentation_eps=NOISES[generator](seeds, shape, device, stream=stream + 1),
        )
        detail = conditioning.detail

        logsnrs = step_logsnrs(
            build_schedule(config.schedule, config.resolution),
            settings.steps,
            spacing=settings.spacing,
            logsnr_range=settings.logsnr_range,
        )
        x_BCHW = noise()
        if edit is not None:
            edit, logsnrs = edit.to(device), edit.last_logsnrs(logsnrs)
            if edit.strength < 1:
                init_BCHW = edit.picture_BCHW if detail is None else detail.encode(edit.picture_BCHW)
                x_BCHW = diffuse(init_BCHW, x_BCHW, logsnrs[:1].to(x_BCHW.dtype).to(device))  # MPS has no float64

        run = settings.build_sampler().sample
        on_step = on_step if detail is None else detail.reporting(on_step)
        steps = self.network.steps if tile is None and isinstance(self.unet, UNet) else None
        variance = config.unet.learned_variance and settings.variance == "learned"
        programs = None if steps is None else steps.trace(run, logsnrs, variance)
        if steps is None or programs is None:
            with self.loaded_unet(device, dtype) as predict:
                denoise = build_denoiser(predict, config, settings, conditioning, edit=edit, tile=tile)
                x_BCHW = run(denoise, x_BCHW, logsnrs, noise=noise, on_step=on_step)
        else:
            with self._evaluating(device, dtype, whole_steps=True) as (unet, around):
                denoiser_at = build_compiled_denoisers(unet, around, config, settings, conditioning, edit, device)
                x_BCHW = steps.run(programs, denoiser_at, x_BCHW, noise=noise, on_step=on_step)
        if not x_BCHW.isfinite().all():
            raise UserError(
                f"stage {config.resolution} produced values that are not finite; "
                "sample with precision fp32, and if that does not help, with weights from before training diverged"
            )
        return to_uint8(x_BCHW if detail is None else detail.decode(x_BCHW))

    @contextmanager
    def loaded_unet(self, device: torch.device, dtype: torch.dtype | None) -> Iterator[Predict]:
        """Yield the U-Net as a function, on `device`, in evaluation mode, computing in `dtype` (None: float32).

        `sample` makes all network evaluations through it. `imagen.serve` overrides it to batch the evaluations of
        several requests.
        """
        with self._evaluating(device, dtype) as (unet, around):
            yield build_predict(unet, around)

    @contextmanager
    def _evaluating(
        self, device: torch.device, dtype: torch.dtype | None, whole_steps: bool = False
    ) -> Iterator[tuple[nn.Module, torch.dtype | None]]:
        """Yield `Network.to_device` in evaluation mode."""
        unet, around = self.network.to_device(device, dtype, whole_steps=whole_steps)
        training = unet.training
        unet.eval()
        try:
            with applied(unet, self.lora):
                yield unet, around
        finally:
            unet.train(training)

    def offload(self) -> None:
        """Move the weights to the CPU; the next `sample` moves them back."""
        self.network.offload()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
