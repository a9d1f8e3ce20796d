"""Load, save and sample a cascade."""

import logging
from collections.abc import Generator, Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, overload

import torch
from PIL import Image
from torch import Tensor
from typing_extensions import Unpack

from imagen.cascade.fast import fast_configs, fast_parts, load_fast
from imagen.cascade.options import Output, Prompt, RequestOptions, takes_options
from imagen.cascade.pipeline import OnPreview, run_request
from imagen.cascade.prompts import check_prompts
from imagen.cascade.provenance import describe, describe_conditions
from imagen.cascade.request import Request, check_count, make_request
from imagen.cascade.sizes import untrained_size
from imagen.cascade.storage import (
    check_stages,
    read_manifest,
    read_tensors,
    read_unconditional,
    resolve_folder,
    write_cascade,
)
from imagen.cascade.texts import PromptEncoder
from imagen.devices import default_device
from imagen.errors import UserError, check_text, quoted, suggest
from imagen.files import copy_licences
from imagen.hints import keyword_hints
from imagen.lora import Adapter, fit, read_adapter
from imagen.precision import Precision, autocast_dtype
from imagen.stage.inputs import to_images
from imagen.stage.sampling import FAST, Stage
from imagen.stage.weights import build_unet, check_float32
from imagen.text.config import TextConfig
from imagen.text.protocol import Encoder
from imagen.text.vocabulary import Vocabulary, untrained_words

log = logging.getLogger(__name__)


class Cascade:
    """Sample a base model and super-resolution models in sequence: prompt to image, 64 -> 256 -> 1024.

    An image is a function of its prompt and its seed, because every image and every stage has its own random numbers
    and texts are padded to the same length in every batch. Other images in the batch affect only rounding: a
    convolution may sum in another order at another batch size.

    unconditional: the unconditional embedding, float [L0, D].
    encoder: None loads it from `text` at the first prompt; `int8_text`: with weights in 8 bits (`imagen.text.int8`).
    Raises UserError if the stages do not fit together.
    """

    def __init__(
        self,
        stages: Sequence[Stage],
        *,
        text: TextConfig | None = None,
        unconditional: Tensor | None = None,
        encoder: Encoder | None = None,
        int8_text: bool = False,
    ):
        check_stages([stage.config for stage in stages], text=text, where="cascade")
        if text is not None and unconditional is None:
            raise ValueError("a cascade with text needs the unconditional embedding")
        self.stages = list(stages)
        self.folder: Path | None = None  # that it was loaded from
        self.text = text
        self.unconditional = unconditional
        self.texts = (
            None if text is None or unconditional is None else PromptEncoder(text, unconditional, encoder, int8_text)
        )

    def __repr__(self) -> str:
        stages = " -> ".join(repr(stage) for stage in self.stages)
        text = "no text" if self.text is None else f"text by {Path(self.text.encoder).name}"
        return f"<Cascade: {text}; {stages}>"

    @classmethod
    @keyword_hints
    def load(
        cls,
        path: str | Path,
        *,
        stages: int | None = None,
        precision: Precision = "fp32",
        int8_text: bool = False,
    ) -> "Cascade":
        """Load a cascade folder, or the export of a training run.

        stages: load only the first `stages` stages.
        precision: "bf16" or "fp16" stores the weights in that format, which halves their memory; sampling must then use
            it, too. Images equal those of "fp32" weights, because autocast rounds in the same way. "auto": the format
            in which the processor multiplies fastest.
        int8_text: store the text encoder's weights in 8 bits. Images then differ slightly.

        Raises UserError, naming file and field, if anything is missing, unknown or damaged.
        """
        folder = resolve_folder(path)
        dtype = autocast_dtype(default_device(), precision)
        for attempt in range(3):
            manifest = read_manifest(folder)
            check_count(stages, [record.config for record in manifest.stages])
            try:
                loaded = []
                for record in manifest.stages[:stages]:
                    tensors = read_tensors(folder, record.weights, record.sha256)
                    unet = build_unet(record.config.unet, tensors, folder / record.weights, dtype)
                    loaded.append(Stage(record.config, unet, record.info, record.sha256))
                    load_fast(loaded[-1], folder, record.fast)
                unconditional = None if manifest.text is None else read_unconditional(folder, manifest.text)
                break
            except UserError:
                # A training run may have exported again in the meantime and deleted the files of the old manifest.
                if attempt == 2 or read_manifest(folder) == manifest:
                    raise
        text = None if manifest.text is None else manifest.text.config
        cascade = cls(loaded, text=text, unconditional=unconditional, int8_text=int8_text)
        cascade.folder = folder
        return cascade

    def save(self, path: str | Path) -> None:
        """Write or atomically replace the cascade folder `path`, with the licences of the folder it was loaded from.

        Raises UserError if the weights are not float32.
        """
        for stage in self.stages:
            check_float32(stage.unet, f"stage {stage.config.resolution} cannot be saved")
        manifest = write_cascade(
            Path(path),
            text=self.text,
            unconditional=self.unconditional,
            stages=[(stage.config, stage.unet.state_dict(), stage.info) for stage in self.stages],
            fast=fast_parts(self.stages),
        )
        for stage, record in zip(self.stages, manifest.stages, strict=True):
            stage.sha256 = record.sha256
        if self.folder is not None:
            copy_licences(self.folder, Path(path))

    def compile(self, **options: Any) -> None:
        """Compile the networks with `torch.compile`. The first image of each size then takes minutes.

        options: of torch.compile. On a GPU, mode="reduce-overhead" adds CUDA graphs, which help with small kernels.
        """
        for stage in self.stages:
            stage.compiled = dict(options)

    def load_lora(self, path: str | Path, *, name: str | None = None, resolution: int | None = None) -> str:
        """Load a LoRA file of peft, diffusers or kohya's scripts, for use as `sample(..., lora={name: 0.8})`.

        name: default: the name of the file without its suffix, or that of the run if it is RUN/lora.safetensors.
        resolution: of the stage to adapt; default: the first stage that the file fits.

        Returns the name. Raises UserError if the file is damaged, fits no stage, or the name is taken.
        """
        adapter = read_adapter(path)
        name = adapter.name if name is None else name
        check_text("the name of a LoRA", name, 200)
        if name == FAST:
            raise UserError(
                f"LoRA {path}: {FAST!r} is the name of the adapter for few steps; give this one another name"
            )
        if name in self.adapters:
            raise UserError(f"a LoRA {quoted(name)} is loaded already; give this one another name")
        stages = [stage for stage in self.stages if resolution in (None, stage.config.resolution)]
        if not stages:
            raise UserError(f"LoRA {name}: the cascade has no stage {resolution}")
        problems = []
        for stage in stages:
            try:
                stage.adapters[name] = fit(adapter, stage.unet)
                return name
            except UserError as error:
                problems.append(f"stage {stage.config.resolution}: {error}")
        raise UserError(problems[0] if len(problems) == 1 else f"{path} fits no stage; {'; '.join(problems)}")

    def unused_name(self, name: str) -> str:
        """Return the name for a LoRA, or with -2, -3 and so on if another has it."""
        taken = {*self.adapters, FAST}
        return next(new for new in (name, *(f"{name}-{i}" for i in range(2, len(taken) + 3))) if new not in taken)

    @property
    def adapters(self) -> dict[str, Adapter]:
        """The loaded LoRA by name."""
        return {name: fitted.adapter for stage in self.stages for name, fitted in stage.adapters.items()}

    @overload
    def sample(
        self,
        prompts: Prompt | Sequence[Prompt],
        *,
        output: Literal["pil"] = "pil",
        progress: bool = True,
        on_step: OnPreview | None = None,
        **options: Unpack[RequestOptions],
    ) -> list[Image.Image]: ...

    @overload
    def sample(
        self,
        prompts: Prompt | Sequence[Prompt],
        *,
        output: Literal["tensor"],
        progress: bool = True,
        on_step: OnPreview | None = None,
        **options: Unpack[RequestOptions],
    ) -> Tensor: ...

    @takes_options(RequestOptions)
    def sample(
        self,
        prompts: Prompt | Sequence[Prompt],
        *,
        output: Output = "pil",
        progress: bool = True,
        on_step: OnPreview | None = None,
        **options: Unpack[RequestOptions],
    ) -> list[Image.Image] | Tensor:
        """Sample one image for each prompt.

        prompts: a text or a list of texts; "" samples the unconditional model. Float tensors [L, D] are text
            embeddings.
        output: "pil" returns a list of RGB images, "tensor" uint8 [B, C, H, W] on the CPU.
        progress: show bars on stderr. on_step: called with a `Preview` after each sampler step.

        Per-stage options take one value for all stages that run, or a list with one for each; per-image options
        likewise. Raises UserError for invalid arguments, before anything is computed, and TypeError for an unknown
        option.
        """
        request = self.request(prompts, **options)
        if output not in ("pil", "tensor"):
            raise UserError(f'output is {output!r}; it must be "pil" or "tensor"')
        self.warn(request)
        if output == "tensor":
            return torch.stack(list(self.run(request, output="tensor", progress=progress, on_step=on_step)))
        return list(self.run(request, progress=progress, on_step=on_step))

    @takes_options(RequestOptions)
    def request(self, prompts: Prompt | Sequence[Prompt], **options: Unpack[RequestOptions]) -> Request:
        """Return the checked request of these arguments, with defaults filled in. Raises as `sample` does."""
        arguments: dict[str, Any] = dict(options)
        configs = [stage.config for stage in self.stages]
        if arguments.pop("fast", False):
            configs, adapters = fast_configs(self.stages)
            arguments["lora"] = {**adapters, **(options.get("lora") or {})}
        request = make_request(configs, prompts, **arguments)
        for name, _ in request.lora:
            if name not in self.adapters:
                known = f"the loaded ones are {', '.join(self.adapters)}" if self.adapters else ""
                raise UserError(f"no LoRA {quoted(name)} is loaded (`load_lora`){suggest(name, self.adapters, known)}")
        check_prompts([*request.prompts, *request.negatives], self.text)
        if request.vram is None:
            return request
        from imagen.cascade.memory import fit_to_memory  # imported here because its imports are slow

        return fit_to_memory(request, self._running(request), 0 if self.text is None else self.text.max_tokens)

    @overload
    def run(
        self,
        request: Request,
        batches: Iterable[range] | None = None,
        *,
        output: Literal["pil"] = "pil",
        progress: bool = True,
        on_step: OnPreview | None = None,
    ) -> Generator[Image.Image, None, None]: ...

    @overload
    def run(
        self,
        request: Request,
        batches: Iterable[range] | None = None,
        *,
        output: Literal["tensor"],
        progress: bool = True,
        on_step: OnPreview | None = None,
    ) -> Generator[Tensor, None, None]: ...

    def run(
        self,
        request: Request,
        batches: Iterable[range] | None = None,
        *,
        output: Output = "pil",
        progress: bool = True,
        on_step: OnPreview | None = None,
    ) -> Generator[Image.Image, None, None] | Generator[Tensor, None, None]:
        """Yield the images of a request, in order, each as soon as its batch is done; progress bars go to stderr.

        batches: some of `request.batches()` (default: all). In other batches, images would differ by rounding.
        output: "pil" yields RGB images, "tensor" uint8 [C, H, W].
        """
        images = run_request(request, self._running(request), self.texts, batches, progress=progress, on_step=on_step)
        return images if output == "tensor" else _as_pil(images)

    def metadata(self, request: Request, number: int) -> dict[str, Any]:
        """Return everything that image `number` of a request depends on, up to rounding, as JSON."""
        text = None if self.texts is None else self.texts.describe()
        return describe(request, self._running(request), text, number)

    def conditions(self, request: Request, number: int) -> dict[str, Any]:
        """Return the conditions that affect the rounding of image `number`, as JSON."""
        return describe_conditions(request, number)

    @property
    def vocabulary(self) -> Vocabulary | None:
        """What the captions of the first stage's training named, if its data set said so."""
        return Vocabulary.from_json(self.stages[0].info.get("vocabulary"))

    def warn(self, request: Request) -> None:
        """Log a warning of image sizes, and one of words, that were not in training."""
        if problem := untrained_size([stage.config for stage in self._running(request)], request.sizes):
            log.warning("%s", problem)
        if self.texts is None or request.first_stage > 0 or (vocabulary := self.vocabulary) is None:
            return
        texts, device, vram = self.texts, request.device, request.vram
        prompts = [prompt for prompt in request.prompts if isinstance(prompt, str)]
        encode = lambda phrases: list(texts(phrases, device, vram).values())  # noqa: E731
        if words := untrained_words(prompts, vocabulary, encode):
            log.warning("%s", words)

    def _running(self, request: Request) -> list[Stage]:
        return self.stages[request.first_stage : request.first_stage + len(request.settings)]


def _as_pil(images: Generator[Tensor, None, None]) -> Generator[Image.Image, None, None]:
    try:
        for image_CHW in images:
            yield from to_images(image_CHW[None])
    finally:
        images.close()  # also closes the progress bars
