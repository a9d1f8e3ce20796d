"""Give a trained base an outer level: weights of `fluent_32` become weights that `fluent_64` begins with.

    python -m imagen.emoji.fluent.grow RUN_32 --out GROWN
    imagen train fluent_64 --init GROWN --data SHARDS --out RUN_64

At 16 x 16 cells and below the larger network is the smaller one. Only what the outer level adds is new, and the last
layers, which now work on its channels (progressive growing, 1710.10196, of a U-Net).
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
    """Weights of `unet`, whose first level is new, from those of the same network without it.

    What is new is drawn from the seed. UserError if more is missing than the outer level and the last layers.
    """
    torch.manual_seed(seed)
    network = UNet(unet)
    state = {name: value.detach().clone() for name, value in network.state_dict().items()}
    missing = set(state)
    for name, value in weights.items():
        inner = _DOWN.sub(lambda found: f"down.{int(found[1]) + 1}.", name, count=1)
        if inner in state and state[inner].shape == value.shape:
            state[inner] = value.to(state[inner].dtype)
            missing.remove(inner)
    new = ("down.0.", f"up.{len(unet.levels) - 1}.", "norm_out.", "conv_out.")
    if lost := [name for name in missing if not name.startswith(new)]:
        raise UserError(f"these are not the weights of the same network without its outer level: no {min(lost)}")
    return state


def grow(source: str | Path, out: str | Path, seed: int = 0) -> None:
    """Write the cascade `out` with the grown weights of `source`, a run of `fluent_32` or its cascade."""
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
