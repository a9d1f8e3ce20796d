"""A training run with all that hangs on it: pictures on the way, and the export that sampling needs."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from imagen.cascade import Stage, export_stage
from imagen.data.embed.sidecar import stored_unconditional
from imagen.data.loading.batches import Batch
from imagen.data.shards.dataset import index_folder, open_split, splits
from imagen.devices import default_device
from imagen.jsonconfig import to_json
from imagen.pictures import contact_sheet, write_png
from imagen.stage.inputs import from_uint8, to_images, to_uint8
from imagen.stage.resize import upsample
from imagen.text.protocol import DatasetEncoder
from imagen.train import on_the_fly
from imagen.train.experiment import Experiment
from imagen.train.flops import meta_unet, picture_flops
from imagen.train.grid import PICTURES, rows_of
from imagen.train.profiling import Span
from imagen.train.ranks import Ranks
from imagen.train.trainer import TrainResult, train


def train_run(
    experiment: Experiment,
    data: str | Path,
    out: str | Path,
    *,
    minutes: float | None = None,
    profile: Span | None = None,
    ranks: Ranks | None = None,
    say: Callable[[str], None] = print,
) -> TrainResult:
    """Train `experiment` on the shards in `data`, in the folder `out`, or go on where it stopped.

    Writes OUT/samples/step-NNNNNNNN.png at intervals (always the same captions and noise) and
    OUT/export, a one-stage cascade with the averaged weights, at each checkpoint.

    profile: the first and the last of the steps that are traced, into OUT/profile.
    ranks: the processes that train together (`imagen.train.ranks.joined`), each of which calls this; default: this one.
    """
    data, out = Path(data), Path(out)
    ranks = ranks or Ranks(torch.device(default_device()))
    encoder, null = on_the_fly.caption_encoder(experiment, ranks.device), None
    if encoder is not None:
        ranks.from_first(lambda: index_folder(data))  # `imagen data encode` need not have been run
        null = on_the_fly.unconditional(encoder)
    elif experiment.text is not None:
        null = stored_unconditional(data, experiment.text, cache=experiment.data.shard_cache)

    def export(weights: dict[str, Tensor], info: dict[str, int]) -> None:
        export_stage(
            out / "export",
            stage=experiment.stage,
            text=experiment.text,
            weights=weights,
            unconditional=null,
            info={"preset": experiment.name, **info},
        )

    sampler = grid_sampler(experiment, data, out / "samples" if ranks.first else None, null, encoder)
    return train(
        experiment,
        to_json(experiment),
        data,
        out,
        sampler=sampler,
        export=export,
        minutes=minutes,
        profile=profile,
        encoder=encoder,
        ranks=ranks,
        say=say,
    )


def grid_sampler(
    experiment: Experiment,
    data: Path,
    folder: Path | None,
    null_LD: Tensor | None,
    encoder: DatasetEncoder | None = None,
) -> Callable[[nn.Module, int], Tensor]:
    """Pictures of the same held-out (else training) captions from the same noise, step after step, into `folder`.

    None: they are made (the ranks that hold a network together have to) and not written.
    For a super-resolution stage each row shows the enlarged input, the output, and the true picture.
    """
    stage = experiment.stage
    split = "heldout" if "heldout" in splits(data) else "train"
    count = min(PICTURES, len(open_split(data, split, experiment.data.shard_cache)))
    config = replace(experiment.data, crop=None, flip=False, workers=0)
    # A loader, rather than the first samples themselves: it replaces bad ones.
    loader = on_the_fly.open_loader(experiment, data, config, encoder, batch_size=count, seed=0, split=split)
    batch = next(iter(loader))
    texts = _texts(batch)

    def sample(unet: nn.Module, step: int) -> Tensor:
        size = (stage.resolution, stage.resolution)
        held, at_once = Stage(stage, _Held(unet)), rows_of(stage.resolution)
        parts = [
            held.sample(
                list(range(begin, min(begin + at_once, count))),
                size=size,
                settings=stage.sampling,
                texts=None if texts is None else texts[begin : begin + at_once],
                unconditional=null_LD,
                text_length=0 if texts is None else max(len(text_LD) for text_LD in texts),
                low_BChw=None if batch.low_res is None else batch.low_res[begin : begin + at_once],
                device=next(unet.parameters()).device,
                precision=experiment.train.precision,
            )
            for begin in range(0, count, at_once)
        ]
        pictures = torch.cat(parts)
        shown, captions = to_images(pictures), list(batch.captions)
        if batch.low_res is not None:
            enlarged = to_uint8(upsample(from_uint8(batch.low_res), size))
            rows = zip(to_images(enlarged), shown, to_images(batch.image), strict=True)
            shown = [image for row in rows for image in row]
            captions = [text for caption in captions for text in ("input", caption, "truth")]
        sheet = contact_sheet(shown, captions, columns=None if batch.low_res is None else 6)
        if folder is not None:
            write_png(folder / f"step-{step:08d}.png", sheet, {"preset": experiment.name, "step": step})
        return torch.from_numpy(np.array(sheet)).permute(2, 0, 1)

    return sample


class _Held(nn.Module):
    """A network that training holds: sampling takes it as it is and where it is, perhaps sharded over ranks, and calls
    nothing but its forward, before which its parameters are gathered."""

    network: nn.Module

    def __init__(self, network: nn.Module):
        super().__init__()
        object.__setattr__(self, "network", network)  # not a part, which would be moved with this one

    def forward(self, *args: Tensor, **kwargs: Tensor) -> Tensor:
        return self.network(*args, **kwargs)


def _texts(batch: Batch) -> list[Tensor] | None:
    """The batch's embeddings without their padding."""
    if batch.text is None or batch.text_mask is None:
        return None
    return [tokens[mask] for tokens, mask in zip(batch.text, batch.text_mask, strict=True)]


def describe(experiment: Experiment) -> dict[str, Any]:
    """What `imagen presets` shows: name, parameters, resolution (pixels), and GFLOP of one forward of one picture."""
    stage = experiment.stage
    unet = meta_unet(experiment)
    return {
        "name": experiment.name,
        "parameters": sum(p.numel() for p in unet.parameters()),
        "resolution": stage.resolution,
        "low_resolution": stage.low_resolution,
        "side": experiment.data.crop or stage.resolution,
        "gflop": round(picture_flops(unet, experiment) / 1e9, 2),
    }
