"""Add an outer level to a trained base, so that the weights of `fluent_32` initialise `fluent_64`.

    python -m imagen.emoji.fluent.grow RUN_32 --out GROWN
    imagen train fluent_64 --init GROWN --data SHARDS --out RUN_64

At resolutions of 16 x 16 and below, the larger network equals the smaller one. Only the outer level is new, and the
last layers, because their input now has its channels. This is progressive growing (1710.10196) of a U-Net.
"""

import argparse
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from imagen.cascade import export_stage
from imagen.cascade.storage import read_manifest, read_tensors, read_unconditional, resolve_folder
from imagen.emoji.fluent.presets import fluent_64
from imagen.errors import UserError
from imagen.models.config import UNetConfig
from imagen.models.unet import UNet

_DOWN = re.compile(r"down\.(\d+)\.")


def grown_weights(weights: Mapping[str, Tensor], unet: UNetConfig, seed: int = 0) -> dict[str, Tensor]:
    """Return weights of `unet` from those of the same network without its first level.

    The new weights are initialised from the seed. Raises UserError if `weights` lacks others than those of the outer
    level and the last layers.
    """
    torch.manual_seed(seed)
    network = UNet(unet)
    state = {name: value.detach().clone() for name, value in network.state_dict().items()}
    uninitialised = set(state)
    for name, value in weights.items():
        inner = _DOWN.sub(lambda found: f"down.{int(found[1]) + 1}.", name, count=1)
        if inner in state and state[inner].shape == value.shape:
            state[inner] = value.to(state[inner].dtype)
            uninitialised.remove(inner)
    allowed = ("down.0.", f"up.{len(unet.levels) - 1}.", "norm_out.", "conv_out.")
    if missing := [name for name in uninitialised if not name.startswith(allowed)]:
        raise UserError(
            f"these are not the weights of the same network without its outer level: {min(missing)} is missing"
        )
    return state


def grow(source: str | Path, out: str | Path, seed: int = 0) -> None:
    """Write the grown weights of `source`, a run of `fluent_32` or its cascade, as the cascade `out`."""
    folder = resolve_folder(source)
    manifest = read_manifest(folder)
    record, experiment = manifest.stages[0], fluent_64()
    weights = read_tensors(folder, record.weights, record.sha256)
    export_stage(
        out,
        stage=experiment.stage,
        text=experiment.text,
        weights=grown_weights(weights, experiment.stage.unet, seed),
        unconditional=read_unconditional(folder, manifest.text) if manifest.text else None,
        info={"preset": experiment.name, "grown_from": record.info},
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", metavar="RUN_32", help="a run of fluent_32, or its cascade")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    grow(options.run, options.out)
    print(f"{options.out}: fluent_64 with the weights of {options.run}")


if __name__ == "__main__":
    main()
