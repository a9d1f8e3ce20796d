"""Prompt to picture: a plan runs through the stages, 64 -> 256 -> 1024.

A picture is a function of its prompt and its seed. Its neighbours in the batch do not matter (to float
tolerance: a convolution may sum in another order for another batch size): every picture and every stage
has its own random numbers, and texts are padded to one length whatever else is asked for.
"""

import hashlib
from collections.abc import Generator, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from imagen import __version__
from imagen.cascade.plan import Plan, check_count, make_plan
from imagen.cascade.running import OnPreview, run
from imagen.cascade.storage import check_stages, find, read_manifest, read_tensors, read_unconditional, write_cascade
from imagen.cascade.texts import Texts
from imagen.devices import default_device
from imagen.diffusion.noise import Variation
from imagen.errors import UserError, check_number
from imagen.jsonconfig import to_json
from imagen.precision import Precision, autocast_dtype
from imagen.stage.sampling import Stage
from imagen.stage.weights import build_unet, check_float32
from imagen.text.config import TextConfig
from imagen.text.protocol import Encoder


class Cascade:
    """Stages that turn prompts into pictures.

    unconditional: float [L0, D], the text embedding that stands for "no prompt".
    encoder: loaded from `text` at the first prompt if left out, with `int8_text` in 8 bits (`imagen.text.int8`).
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
        self.text = text
        self.unconditional = unconditional
        self.texts = None if text is None or unconditional is None else Texts(text, unconditional, encoder, int8_text)

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        stages: int | None = None,
        precision: Precision = "fp32",
        int8_text: bool = False,
    ) -> "Cascade":
        """Read a cascade folder, or the export of a training run; with `stages`, only the first so many.

        precision: "bf16" or "fp16" holds the weights in that format, half of the memory, for sampling in it alone.
            Pictures are those of "fp32" weights, since autocast rounds them in the same way. "auto": the format in
            which the processor multiplies fastest.
        int8_text: the text encoder will hold its weights in 8 bits. Pictures differ from those of the whole encoder.

        Raises UserError, naming file and field, if anything is missing, unknown or damaged.
        """
        folder = find(path)
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
                unconditional = None if manifest.text is None else read_unconditional(folder, manifest.text)
                break
            except UserError:
                # A training run may have exported anew meanwhile, and removed what we were about to read.
                if attempt == 2 or read_manifest(folder) == manifest:
                    raise
        text = None if manifest.text is None else manifest.text.config
        return cls(loaded, text=text, unconditional=unconditional, int8_text=int8_text)

    def save(self, path: str | Path) -> None:
        """Write (or replace, atomically) the cascade folder `path`. UserError if loading rounded its weights."""
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

    def compile(self, **options: Any) -> None:
        """`torch.compile` the networks, with its options. The first picture of each size then takes minutes.

        On a GPU mode="reduce-overhead" adds CUDA graphs, which pay where a network's kernels are small.
        """
        for stage in self.stages:
            stage.compiled = dict(options)

    def sample(
        self,
        prompts: Sequence[str],
        *,
        progress: bool = True,
        on_step: OnPreview | None = None,
        **request: Any,
    ) -> list[Image.Image]:
        """One picture (PIL, RGB) for each prompt. "" is the unconditional model.

        on_step: called after each sampler step, for previews.

        What may be requested, for pictures (one for each, or one for all):
        seeds: whole numbers >= 0 (default 0), or a `Variation` of two.
        negative: prompts that guidance leads away from (default: none).
        start: low-resolution pictures, all of one size, a list: the stage that was trained for the
            nearest size below makes the first step. Default: the base stage makes them from noise.
        init: pictures to begin with, resized to each stage. mask: where they are drawn anew (white) or kept (black).

        For stages (one for each that runs, or one for all):
        settings: SamplingConfigs in place of the stages' own, a list. Any field of SamplingConfig can also be
            given by its name: steps, guidance, low_res_noise, sampler...
        strength: share of the steps that are taken from `init`, above 0; 1 (the default) forgets it but for the mask.
        tile: side in pixels of the pieces in which larger pictures of super-resolution stages are computed.
        rows: pictures in one call of the network (default: batch_size).

        For all:
        stages: stop after this many stages of the cascade (those before `start` count).
        scale: enlarge `start` by this. Default: to the end of the cascade.
        size: (height, width) of the result; every stage keeps its proportions.
        batch_size: pictures at a time (default 8); changes speed and memory only.
        vram: GiB of device memory for weights, text encoder and steps. Stages then leave the device between turns, rows
            are cut, and large pictures made in tiles, as far as it takes (`imagen.cascade.memory`).
        device: default the GPU if there is one. precision: "auto" is the format in which it multiplies fastest.

        Raises UserError, before anything is computed, for what cannot be done.
        """
        return list(self.run(self.plan(prompts, **request), progress=progress, on_step=on_step))

    def plan(self, prompts: Sequence[str], *, vram: float | None = None, **request: Any) -> Plan:
        """Check a request and fill in its defaults; takes what `sample` takes, progress and on_step excepted."""
        plan = make_plan([stage.config for stage in self.stages], prompts, **request)
        if self.text is None and any((*plan.prompts, *plan.negatives)):
            raise UserError("this cascade was trained without text: it takes no prompt but the empty one")
        if vram is None:
            return plan
        from imagen.cascade.memory import fit  # whose imports take a while

        check_number("vram", vram, above=0)
        stages = self.stages[plan.first : plan.first + len(plan.settings)]
        return fit(plan, stages, vram, 0 if self.text is None else self.text.max_tokens)

    def run(
        self,
        plan: Plan,
        batches: Iterable[range] | None = None,
        *,
        progress: bool = True,
        on_step: OnPreview | None = None,
    ) -> Generator[Image.Image, None, None]:
        """Make the pictures of a plan, in order, each as soon as its batch is done. Bars go to stderr.

        batches: some of `plan.batches()` (default: all). Pictures keep their bits only in their own batch.
        """
        yield from run(self, plan, batches, progress=progress, on_step=on_step)

    def metadata(self, plan: Plan, picture: int) -> dict[str, Any]:
        """All that it takes to make a picture of the plan again, as JSON."""
        stages = self.stages[plan.first : plan.first + len(plan.settings)]
        seed = plan.seeds[picture]
        value: dict[str, Any] = {
            "version": __version__,
            "prompt": plan.prompts[picture],
            "negative": plan.negatives[picture],
            "seed": seed.seed if isinstance(seed, Variation) else seed,
            "size": list(plan.crop),
            "precision": plan.precision,
            "text": None if self.texts is None else self.texts.describe(),
            "stages": [
                {"resolution": stage.config.resolution, "weights": stage.sha256, "sampling": to_json(settings)}
                for stage, settings in zip(stages, plan.settings, strict=True)
            ],
        }
        if plan.noise != "torch":
            value["noise"] = plan.noise
        if isinstance(seed, Variation):
            value["variation"] = {"seed": seed.other, "amount": seed.amount}
        for name in ("start", "init", "masks"):
            given = getattr(plan, name)
            if given is not None:
                value[name] = digest(given[picture])
        if plan.init is not None:
            value["strength"] = list(plan.strength)
        if any(plan.tiles):
            value["tiles"] = [None if tile is None else tile.side for tile in plan.tiles]
        return value

    def conditions(self, plan: Plan, picture: int) -> dict[str, Any]:
        """On what else the last bits of a picture of the plan depend, as JSON."""
        batch = next(batch for batch in plan.batches() if picture in batch)
        return {
            "device": plan.device.type,
            "threads": torch.get_num_threads() if plan.device.type == "cpu" else None,
            "batch": len(batch),
            "place": picture - batch.start,  # in its batch
            "rows": [min(rows, len(batch)) for rows in plan.rows],
        }


def digest(image: Image.Image) -> str:
    """sha256 of the pixels as RGB."""
    return hashlib.sha256(image.convert("RGB").tobytes()).hexdigest()
