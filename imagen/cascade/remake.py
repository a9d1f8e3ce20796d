"""Regenerate an image from the provenance in its file."""

from pathlib import Path

import torch
from PIL import Image

from imagen.cascade.cascade import Cascade
from imagen.cascade.options import RequestOptions
from imagen.cascade.provenance import Provenance, digest, read_provenance
from imagen.cascade.request import Request
from imagen.diffusion.noise import Variation
from imagen.errors import UserError

INPUTS = {  # field: (the image that was used, one that was not)
    "start": ("the image that it upsamples", "an image to upsample"),
    "init": ("its init image", "an init image"),
    "masks": ("its mask", "a mask"),
}


def regenerate_request(
    cascade: Cascade,
    picture: str | Path,
    *,
    start: Image.Image | None = None,
    init: Image.Image | None = None,
    mask: Image.Image | None = None,
    device: torch.device | str | None = None,
) -> tuple[Request, int]:
    """Return the request that regenerates the image in a file, and the number of the image in it.

    The result is bit-identical on the same kind of device with the same release of torch. The last bits of a network's
    output depend on its batch size, so the batch is filled with copies. Sets torch's number of threads.
    start, init, mask: the input images; the file contains only their hashes.

    Raises UserError if the file has no provenance, names other weights or other input images, or is an upsampled image
    for which this cascade would start at another stage.
    """
    made, where = read_provenance(picture), str(picture)
    given = {"start": start, "init": init, "masks": mask}
    _check_given(made, where, given)
    if made.embedding is not None or made.negative_embedding is not None:
        raise UserError(f"{where} was made from a prompt embedding, and the file contains only its hash")
    first = _first_stage(cascade, made, where)
    if cascade.texts is not None and made.text != cascade.texts.describe():
        raise UserError(f"{where} was made with another text encoder, {made.text}; load the cascade that made it")

    last, count = first + len(made.stages) - 1, made.conditions.batch
    variation = made.variation
    seed = made.seed if variation is None else Variation(made.seed, variation.seed, variation.amount)
    options: RequestOptions = {
        "negative": made.negative,
        "seeds": [seed] * count,
        "init": init,
        "mask": mask,
        "strength": made.strength,
        "tile": made.tiles,
        "stages": last + 1,
        "settings": [stage.sampling for stage in made.stages],
        "micro_batch": made.conditions.rows,
        "batch_size": count,
        "device": device,
        "precision": made.precision,
        "noise": made.noise or "torch",
        "lora": _lora(cascade, made, where),
    }
    if start is None:
        options["size"] = made.size
    else:
        options["start"] = [start] * count
        options["scale"] = cascade.stages[last].config.resolution // (cascade.stages[first].config.low_resolution or 1)
    request = cascade.request([made.prompt] * count, **options)
    if request.first_stage != first:  # with `start`, the request chooses its first stage by the size of the image
        used, ours = (cascade.stages[i].config.resolution for i in (first, request.first_stage))
        raise UserError(
            f"{where} was upsampled from stage {used} on, but this cascade upsamples an image of this size from stage "
            f"{ours} on; load the cascade that made it"
        )
    if made.conditions.threads is not None:
        torch.set_num_threads(made.conditions.threads)
    return request, made.conditions.place


def _check_given(made: Provenance, where: str, given: dict[str, Image.Image | None]) -> None:
    """Raise UserError unless the input images are those of the provenance."""
    for name, (what, none) in INPUTS.items():
        image, wanted = given[name], getattr(made, name)
        if (image is None) != (wanted is None):
            raise UserError(f"{where}: {'give ' + what if image is None else 'it was made without ' + none}")
        if image is not None and digest(image) != wanted:
            raise UserError(f"{where}: the given image is not {what}; its pixels differ")


def _lora(cascade: Cascade, made: Provenance, where: str) -> dict[str, float]:
    """Return the weights of the loaded adapters that the image was made with. Raises UserError if one is not loaded."""
    weights: dict[str, float] = {}
    for lora in made.lora or ():
        names = [
            name
            for stage in cascade.stages
            if lora.resolution in (None, stage.config.resolution)
            for name, fitted in stage.adapters.items()
            if fitted.adapter.sha256 == lora.sha256
        ]
        if not names:
            known = f"LoRA {lora.name} (sha256 {lora.sha256[:12]}...)"
            if lora.resolution is not None:
                known = f"{known} on stage {lora.resolution}"
            raise UserError(f"{where} was made with {known}; load that file, too (--lora)")
        weights[next((name for name in names if name not in weights), names[0])] = lora.weight
    return weights


def _first_stage(cascade: Cascade, made: Provenance, where: str) -> int:
    """Return the index in the cascade of the first stage that sampled the image."""
    hashes = [stage.weights for stage in made.stages]
    ours = [stage.sha256 for stage in cascade.stages]
    for first in range(len(ours)):
        if ours[first : first + len(hashes)] == hashes:
            return first
    names = ", ".join(f"{stage.resolution} {str(stage.weights)[:12]}" for stage in made.stages)
    raise UserError(f"{where} was made by other weights than those of this cascade: {names}")
