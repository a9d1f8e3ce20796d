"""Prompt to picture: a plan runs through the stages, 64 -> 256 -> 1024.

A picture is a function of its prompt and its seed. Its neighbours in the batch do not matter (to float
tolerance: a convolution may sum in another order for another batch size): every picture and every stage
has its own random numbers, and padding of the text is masked.
"""

import hashlib
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from imagen import __version__
from imagen.cascade.conditioning import from_images, to_images
from imagen.cascade.config import Sampler, SamplingConfig
from imagen.cascade.plan import Plan, check_count, make_plan
from imagen.cascade.stage import Stage, build_unet, check_float32
from imagen.cascade.storage import check_stages, find, read_manifest, read_tensors, read_unconditional, write_cascade
from imagen.errors import UserError
from imagen.jsonconfig import to_json
from imagen.models.precision import Precision, autocast_dtype
from imagen.models.text import TextConfig, load_text_encoder

EMBEDDINGS = 1024  # prompts whose embeddings are held in memory together (T5-XXL: at most 2 MB each)
ENCODE_AT_ONCE = 32  # prompts in one forward of the text encoder


class Encoder(Protocol):
    def encode(self, prompts: list[str], /) -> list[Tensor]: ...


class Preview(NamedTuple):
    """What `on_step` is called with after each step of the sampler."""

    stage: int  # index in the cascade
    step: int  # 0 .. steps - 1
    steps: int
    pictures: range  # which of the plan's pictures these are
    x0_BCHW: Tensor  # the current estimate, in [-1, 1] where thresholded


class Cascade:
    """Stages that turn prompts into pictures.

    unconditional: float [L0, D], the text embedding that stands for "no prompt".
    encoder: loaded from `text` at the first prompt if left out.
    Raises UserError if the stages do not fit together.
    """

    def __init__(
        self,
        stages: Sequence[Stage],
        *,
        text: TextConfig | None = None,
        unconditional: Tensor | None = None,
        encoder: Encoder | None = None,
    ):
        check_stages([stage.config for stage in stages], text=text, where="cascade")
        if text is not None and unconditional is None:
            raise ValueError("a cascade with text needs the unconditional embedding")
        self.stages = list(stages)
        self.text = text
        self.unconditional = unconditional
        self._encoder = encoder

    @classmethod
    def load(cls, path: str | Path, *, stages: int | None = None, precision: Precision = "fp32") -> "Cascade":
        """Read a cascade folder, or the export of a training run; with `stages`, only the first so many.

        precision: "bf16" holds the weights in bfloat16, half of the memory, for sampling in bfloat16 alone, where the
        pictures are those of "fp32": autocast rounds weights in the same way. "auto": where the processor has it.

        Raises UserError, naming file and field, if anything is missing, unknown or damaged.
        """
        folder = find(path)
        dtype = autocast_dtype("cuda" if torch.cuda.is_available() else "cpu", precision)
        for attempt in range(3):
            manifest = read_manifest(folder)
            check_count(stages, [record.config for record in manifest.stages])
            try:
                loaded = []
                for record in manifest.stages[:stages]:
                    tensors = read_tensors(folder, record.weights, record.sha256)
                    unet = build_unet(record.config.unet, tensors, folder / record.weights, dtype)
                    loaded.append(Stage(record.config, unet, record.info, record.sha256))
                unconditional = None if manifest.text is None else read_unconditional(folder, manifest.text)
                break
            except UserError:
                # A training run may have exported anew meanwhile, and removed what we were about to read.
                if attempt == 2 or read_manifest(folder) == manifest:
                    raise
        text = None if manifest.text is None else manifest.text.config
        return cls(loaded, text=text, unconditional=unconditional)

    def save(self, path: str | Path) -> None:
        """Write (or replace, atomically) the cascade folder `path`. UserError if its weights were loaded in bf16."""
        for stage in self.stages:
            check_float32(stage.unet, f"stage {stage.config.resolution} cannot be saved")
        manifest = write_cascade(
            Path(path),
            text=self.text,
            unconditional=self.unconditional,
            stages=[(stage.config, stage.unet.state_dict(), stage.info) for stage in self.stages],
        )
        for stage, record in zip(self.stages, manifest.stages, strict=True):
            stage.sha256 = record.sha256

    def sample(
        self,
        prompts: Sequence[str],
        *,
        seeds: int | Sequence[int] | None = None,
        start: Sequence[Image.Image] | None = None,
        stages: int | None = None,
        settings: Sequence[SamplingConfig] | None = None,
        steps: int | Sequence[int] | None = None,
        guidance: float | Sequence[float] | None = None,
        low_res_noise: float | Sequence[float] | None = None,
        sampler: Sampler | Sequence[Sampler] | None = None,
        size: tuple[int, int] | None = None,
        batch_size: int = 8,
        device: torch.device | str | None = None,
        precision: Precision = "auto",
        progress: bool = True,
        on_step: Callable[[Preview], None] | None = None,
    ) -> list[Image.Image]:
        """One picture (PIL, RGB) for each prompt.

        prompts: "" is the unconditional model.
        seeds: one for each picture, or one for all (default 0). Whole numbers >= 0.
        start: low-resolution pictures, one a prompt, all of one size: the stage that was trained for the
            nearest size below makes the first step. Default: the base stage makes them from noise.
        stages: stop after this many stages of the cascade (those before `start` count).
        settings: replaces the stages' own, one for each stage that runs.
        steps, guidance, low_res_noise, sampler: override one setting, for all stages that run or for each.
        size: (height, width) of the result; every stage keeps its proportions.
        batch_size: pictures at a time; changes speed and memory only.
        device: default the GPU if there is one. precision: "auto" is bfloat16 where the processor has it.
        on_step: called after each sampler step, for previews.

        Raises UserError, before anything is computed, for what cannot be done.
        """
        plan = self.plan(
            prompts,
            seeds=seeds,
            start=start,
            stages=stages,
            settings=settings,
            steps=steps,
            guidance=guidance,
            low_res_noise=low_res_noise,
            sampler=sampler,
            size=size,
            batch_size=batch_size,
            device=device,
            precision=precision,
        )
        return list(self.run(plan, progress=progress, on_step=on_step))

    def plan(self, prompts: Sequence[str], **request: Any) -> Plan:
        """Check a request and fill in its defaults; takes what `sample` takes, progress and on_step excepted."""
        if self.text is None and any(prompts):
            raise UserError("this cascade was trained without text: it takes no prompt but the empty one")
        return make_plan([stage.config for stage in self.stages], prompts, **request)

    def run(
        self, plan: Plan, *, progress: bool = True, on_step: Callable[[Preview], None] | None = None
    ) -> Generator[Image.Image, None, None]:
        """Make the pictures of a plan, in order, each as soon as its batch is done. Bars go to stderr."""
        count, size = len(plan.prompts), plan.batch_size
        batches = -(-count // size)
        bars = [
            tqdm(total=batches * settings.steps, desc=f"{width}x{height}", unit="step", disable=not progress)
            for settings, (height, width) in zip(plan.settings, plan.sizes, strict=True)
        ]
        texts: dict[str, Tensor] = {}
        try:
            for begin in range(0, count, size):
                pictures = range(begin, min(begin + size, count))
                if not all(plan.prompts[i] in texts for i in pictures):
                    texts = self._embed(plan.prompts[begin : begin + max(EMBEDDINGS, size)], plan)
                picture = None
                if plan.start is not None:
                    channels = self.stages[plan.first].config.unet.image_channels
                    picture = from_images(plan.start[begin : pictures.stop], channels)
                for number, bar in enumerate(bars):
                    picture = self._run_stage(plan, number, pictures, texts, picture, bar, on_step)
                assert picture is not None
                yield from to_images(picture)
        finally:
            for bar in bars:
                bar.close()

    def metadata(self, plan: Plan, picture: int) -> dict[str, Any]:
        """All that it takes to make a picture of the plan again, as JSON."""
        stages = self.stages[plan.first : plan.first + len(plan.settings)]
        value: dict[str, Any] = {
            "version": __version__,
            "prompt": plan.prompts[picture],
            "seed": plan.seeds[picture],
            "size": list(plan.sizes[-1]),
            "precision": plan.precision,
            "text": None if self.text is None else to_json(self.text),
            "stages": [
                {"resolution": stage.config.resolution, "weights": stage.sha256, "sampling": to_json(settings)}
                for stage, settings in zip(stages, plan.settings, strict=True)
            ],
        }
        if plan.start is not None:
            value["start"] = hashlib.sha256(plan.start[picture].convert("RGB").tobytes()).hexdigest()
        return value

    def _run_stage(
        self,
        plan: Plan,
        number: int,
        pictures: range,
        texts: dict[str, Tensor],
        low_BChw: Tensor | None,
        bar: tqdm,
        on_step: Callable[[Preview], None] | None,
    ) -> Tensor:
        """Some of the plan's pictures through its `number`-th stage: uint8 BChw (None for a base) to uint8 BCHW."""
        index = plan.first + number

        def report(step: int, steps: int, x_BCHW: Tensor, x0_BCHW: Tensor) -> None:
            bar.update()
            if on_step is not None:
                on_step(Preview(index, step, steps, pictures, x0_BCHW))

        return self.stages[index].sample(
            [plan.seeds[i] for i in pictures],
            size=plan.sizes[number],
            settings=plan.settings[number],
            texts=[texts[plan.prompts[i]] for i in pictures],
            unconditional=self.unconditional,
            low_BChw=low_BChw,
            device=plan.device,
            precision=plan.precision,
            on_step=report,
        )

    def _embed(self, prompts: Sequence[str], plan: Plan) -> dict[str, Tensor]:
        """Text embeddings [L, D] of the prompts that differ; none if no stage of the plan reads text."""
        texts: dict[str, Tensor] = {}
        stages = self.stages[plan.first : plan.first + len(plan.settings)]
        if self.text is None or self.unconditional is None or all(s.config.unet.text_width is None for s in stages):
            return dict.fromkeys(prompts, torch.empty(0))
        wanted = [prompt for prompt in dict.fromkeys(prompts) if prompt]
        if wanted:
            if self._encoder is None:
                self._encoder = load_text_encoder(self.text, device=plan.device)
            for begin in range(0, len(wanted), ENCODE_AT_ONCE):
                some = wanted[begin : begin + ENCODE_AT_ONCE]
                texts |= zip(some, self._encoder.encode(some), strict=True)
        return {"": self.unconditional, **texts}
