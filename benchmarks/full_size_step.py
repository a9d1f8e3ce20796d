"""Run optimizer steps of the presets at full size, with the trainer, on emoji images.

    python benchmarks/full_size_step.py [PRESET ...] [--batch 2] [--micro-batch 1] [--steps 1] [--no-checkpoint]

Text embeddings are random, with the shapes of T5-11B's (dimension 1024). The rest is what `imagen train` does: loader,
forward process, forward and backward pass, clipping, optimizer, EMAs, and a checkpoint in a temporary folder. Prints
loss, gradient norm, seconds per step, and the peak memory of the process.

`--ranks 4 --shard 4 --levels 3 --blocks 1` runs the first 3 levels of a preset with one residual block each, sharded
over 4 gloo ranks. The ranks build their networks one after another, so memory holds only one full network at a time.
"""

import argparse
import dataclasses
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from measure import describe_machine, machine
from torch import nn

from imagen.data.embed.sidecar import to_bf16_bits, write_sidecar
from imagen.data.shards.dataset import index_folder, open_split, splits
from imagen.emoji.dataset import build_emoji
from imagen.models.config import UNetConfig
from imagen.presets import preset
from imagen.text.config import TextConfig
from imagen.train import model as training
from imagen.train.config import OptimConfig, ParallelConfig
from imagen.train.experiment import Experiment
from imagen.train.ranks import Ranks, process_group
from imagen.train.trainer import Trainer

JOBS = ("text2im_64_397m", "sr_256_600m", "sr_1024_400m")


def main() -> None:
    options = arguments()
    if "RANK" in os.environ:
        run(options, options.presets[0], options.data)
        return
    print(describe_machine(machine()), flush=True)
    with tempfile.TemporaryDirectory() as scratch:
        data = Path(scratch, "shards")
        build_emoji(data, (64, 256, 1024), variants=1, seed=0, limit_objects=2, progress=False)
        for text in {preset(name).text for name in options.presets or JOBS}:
            random_embeddings(data, text)
        for name in options.presets or JOBS:
            torchrun = ["torch.distributed.run", "--standalone", "--nproc-per-node", str(options.ranks)]
            script = [__file__, name, *sys.argv[1 + len(options.presets) :], "--data", str(data)]
            subprocess.run([sys.executable, "-m", *torchrun, *script], check=True)


def run(options: argparse.Namespace, name: str, data: Path) -> None:
    """Train preset `name` as one rank."""
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // options.ranks))
    config = experiment(options, name)
    with process_group("cpu") as ranks, tempfile.TemporaryDirectory() as scratch:
        folder = ranks.on_first(lambda: scratch)
        if ranks.world_size > 1:
            config = dataclasses.replace(config, parallel=ParallelConfig(shard=options.shard))
            build_in_turn(ranks)
        trainer = Trainer(config, data, Path(folder), ranks=ranks)
        if options.no_checkpoint:
            trainer.run.checkpointer.checkpoints.save = lambda *_: None  # type: ignore[method-assign]
        began = time.monotonic()
        trainer.train()
        seconds = time.monotonic() - began
        peak = ranks.gather_objects(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)
        if ranks.is_first:
            rows = [json.loads(line) for line in Path(folder, "metrics.jsonl").read_text().splitlines()]
            last, parameters = rows[-1], trainer.run.model.parameters
            print(
                f"{name}: {parameters / 1e6:,.1f}M parameters, loss {last['loss']:.4f}, gradient norm "
                f"{last['grad_norm']:.4f}, {config.train.batch_size / last['images_per_s']:.1f} s per step of "
                f"{config.train.batch_size} images, {seconds:.0f} s in total, peak {max(peak):.1f} GiB per rank",
                flush=True,
            )


def build_in_turn(ranks: Ranks) -> None:
    """Patch training so that each rank builds its full network only after the previous ranks have sharded theirs."""
    build, shard = training.UNet, training.parallelize

    def build_later(config: UNetConfig) -> nn.Module:
        for _ in range(ranks.rank):
            dist.barrier()
        return build(config)

    def shard_and_pass_on(*arguments: Any, **options: Any) -> nn.Module:
        network = shard(*arguments, **options)
        for _ in range(ranks.world_size - ranks.rank):
            dist.barrier()
        return network

    training.UNet, training.parallelize = build_later, shard_and_pass_on  # type: ignore[assignment,misc]


def experiment(options: argparse.Namespace, name: str) -> Experiment:
    """Return preset `name` with the changes that the options request."""
    base = preset(name)
    unet = base.stage.unet
    levels = unet.levels[: options.levels]
    if options.blocks:
        levels = tuple(dataclasses.replace(level, blocks=options.blocks) for level in levels)
    unet = dataclasses.replace(unet, levels=levels)
    return dataclasses.replace(
        base,
        stage=dataclasses.replace(base.stage, unet=unet),
        data=dataclasses.replace(base.data, workers=0, crop=options.crop or base.data.crop),
        optim=OptimConfig(algorithm="adafactor", betas=(0.0, 0.999)) if options.adafactor else base.optim,
        train=dataclasses.replace(
            base.train,
            steps=options.steps,
            batch_size=options.batch,
            micro_batch=options.micro_batch,
            log_every=1,
            gap_samples=2,
        ),
    )


def random_embeddings(data: Path, text: TextConfig | None) -> None:
    """Write sidecars of random embeddings for all captions in `data`."""
    if text is None:
        return
    index_folder(data)
    generator = torch.Generator().manual_seed(0)
    for split in splits(data):
        dataset = open_split(data, split)
        for shard in range(len(dataset.shards)):
            captions = dataset.shard_captions(shard)
            lengths = [4 + len(caption) // 4 for those in captions for caption in those]
            tokens = [torch.randn(length, text.width, generator=generator) for length in lengths]
            empty = np.empty((0, text.width), np.uint16)
            write_sidecar(dataset.tar_path(shard), text, captions, [to_bf16_bits(t) for t in tokens], empty)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("presets", nargs="*", metavar="PRESET", help=f"default: {' '.join(JOBS)}")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--micro-batch", type=int, default=1)
    parser.add_argument("--steps", type=int, default=1)
    parser.add_argument("--crop", type=int, help="side of the crops of a super-resolution preset")
    parser.add_argument("--blocks", type=int, help="residual blocks per level (default: the preset's)")
    parser.add_argument("--levels", type=int, help="use only the first LEVELS levels of the preset")
    parser.add_argument("--adafactor", action="store_true", help="replace the preset's optimizer, to save memory")
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--shard", type=int, default=1)
    parser.add_argument("--no-checkpoint", action="store_true", help="save no checkpoint, which would copy all tensors")
    parser.add_argument("--data", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
