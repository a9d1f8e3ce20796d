"""A picture again, from what its file says."""

from pathlib import Path
from typing import Any

import torch
from PIL import Image

from imagen.cascade.cascade import Cascade, digest
from imagen.cascade.config import SamplingConfig
from imagen.cascade.plan import Plan
from imagen.diffusion.noise import Variation
from imagen.errors import UserError
from imagen.jsonconfig import from_json
from imagen.pictures import read_metadata

GIVEN = {"start": "the picture that it enlarges", "init": "its init picture", "masks": "its mask"}


def plan_again(
    cascade: Cascade,
    picture: str | Path,
    *,
    start: Image.Image | None = None,
    init: Image.Image | None = None,
    mask: Image.Image | None = None,
    device: torch.device | str | None = None,
) -> tuple[Plan, int]:
    """The plan that makes the picture in a file again, and the number of the picture in it.

    Bit for bit on the same kind of device, with the same release of torch: the batch is filled with copies, since
    the last bits of a network's answer depend on the size of its batch, and threads are set to as many as there were.
    start, init, mask: pictures that went into it, since a file holds only their hashes.

    Raises UserError if the file does not say how it was made, or was made by other weights or from other pictures.
    """
    found = read_metadata(picture)
    try:
        if found is None:
            raise UserError(f"{picture} says nothing of how it was made")
        return _plan(cascade, found, str(picture), {"start": start, "init": init, "masks": mask}, device)
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise UserError(f"{picture} does not say all that it takes to make it again: {error}") from None


def _plan(
    cascade: Cascade,
    found: dict[str, Any],
    where: str,
    given: dict[str, Image.Image | None],
    device: torch.device | str | None,
) -> tuple[Plan, int]:
    for name, what in GIVEN.items():
        image = given[name]
        if (image is None) != (found.get(name) is None):
            raise UserError(f"{where}: {'give ' + what if image is None else 'it was made without ' + what[4:]}")
        if image is not None and digest(image) != found[name]:
            raise UserError(f"{where}: that is not {what}: its pixels are others")
    hashes = [stage["weights"] for stage in found["stages"]]
    ours = [stage.sha256 for stage in cascade.stages]
    first = next((i for i in range(len(ours)) if ours[i : i + len(hashes)] == hashes), None)
    if first is None:
        names = ", ".join(f"{stage['resolution']} {str(stage['weights'])[:12]}" for stage in found["stages"])
        raise UserError(f"{where} was made by other weights than those of this cascade: {names}")
    if cascade.texts is not None and found["text"] != cascade.texts.describe():
        raise UserError(f"{where} was made with another text encoder, {found['text']}")

    last, conditions = first + len(hashes) - 1, found["conditions"]
    count, seed = int(conditions["batch"]), found["seed"]
    if "variation" in found:
        seed = Variation(seed, found["variation"]["seed"], found["variation"]["amount"])
    low = cascade.stages[first].config.low_resolution or 1
    request: dict[str, Any] = {
        "negative": found["negative"],
        "seeds": [seed] * count,
        "init": given["init"],
        "mask": given["masks"],
        "strength": found.get("strength"),
        "tile": found.get("tiles"),
        "stages": last + 1,
        "settings": [from_json(SamplingConfig, stage["sampling"], where) for stage in found["stages"]],
        "rows": conditions["rows"],
    }
    if given["start"] is None:
        request["size"] = tuple(found["size"])
    else:
        request["start"] = [given["start"]] * count
        request["scale"] = cascade.stages[last].config.resolution // low
    if conditions["threads"] is not None:
        torch.set_num_threads(conditions["threads"])
    plan = cascade.plan(
        [found["prompt"]] * count, batch_size=count, device=device, precision=found["precision"], **request
    )
    return plan, int(conditions["place"])
