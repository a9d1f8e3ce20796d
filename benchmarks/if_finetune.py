"""Memory and time of fine-tuning stage I of DeepFloyd IF at full size, with random weights.

    python benchmarks/if_finetune.py                         # one LoRA step of IF-I-M on this machine's CPU
    python benchmarks/if_finetune.py --full                  # all weights
    python benchmarks/if_finetune.py --plan --sizes M L XL   # memory on GPUs by `imagen plan`'s dry run

The step is the one of `imagen train`: forward process, hybrid loss, backward pass, clipping, AdamW and EMA, for
`--batch` images of 64 x 64 pixels with 77 tokens of 4096 dimensions. Text embeddings are random: T5-XXL's memory is not
included. Prints seconds per step and the peak resident memory of the process; Linux.
"""

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch

from imagen.convert.deepfloyd import MAX_TOKENS
from imagen.convert.structure import read_unet_config
from imagen.data.loading.batches import Batch
from imagen.diffusion.schedule import ScheduleConfig
from imagen.errors import UserError
from imagen.models.unet import UNet
from imagen.precision import autocast, autocast_dtype
from imagen.presets import preset
from imagen.stage.config import SamplingConfig, StageConfig
from imagen.stage.loss import ForwardProcess
from imagen.text.config import TextConfig
from imagen.train.config import ParallelConfig
from imagen.train.ema import Ema
from imagen.train.experiment import Experiment
from imagen.train.finetune import adapt
from imagen.train.optim import build_optimizer
from imagen.train.parallel import apply_activation_checkpointing
from imagen.train.plan import plan
from imagen.train.step import launch_step

CHANNELS = {"M": 192, "L": 320, "XL": 704}  # of the first level of IF-I-M, IF-I-L and IF-I-XL
WIDTH = 4096  # of T5-XXL's tokens
GIB = 2**30


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", choices=list(CHANNELS), default=["M"])
    parser.add_argument("--full", action="store_true", help="train all weights, not adapters")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--steps", type=int, default=1)
    parser.add_argument("--checkpointing", choices=["none", "full"], default="none")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--plan", action="store_true")
    parser.add_argument("--gpus", nargs="+", default=["rtx-4090", "h100-80gb"])
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    for size in options.sizes:
        if options.plan:
            for lora, state in ((options.rank, "float32"), (0, "float32"), (0, "int8")):
                for gpu in options.gpus:
                    what = experiment(size, lora, options, state)
                    print(json.dumps({"size": size, "state": state, **planned(what, gpu)}), flush=True)
        else:
            print(
                json.dumps(
                    {"size": size, **step(experiment(size, 0 if options.full else options.rank, options), options)}
                )
            )


def experiment(
    size: str, rank: int, options: argparse.Namespace, state: Literal["float32", "int8"] = "float32"
) -> Experiment:
    """Return the experiment that `imagen train finetune(_lora) --init IF-I --optim.state STATE` resolves to."""
    channels = CHANNELS[size]
    config = {
        "act_fn": "gelu",
        "addition_embed_type": "text",
        "attention_head_dim": 64,
        "block_out_channels": [channels, 2 * channels, 3 * channels, 4 * channels],
        "cross_attention_dim": 4 * channels,
        "cross_attention_norm": "group_norm",
        "down_block_types": ["ResnetDownsampleBlock2D", *["SimpleCrossAttnDownBlock2D"] * 3],
        "encoder_hid_dim": WIDTH,
        "in_channels": 3,
        "layers_per_block": 3,
        "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
        "out_channels": 6,
        "resnet_time_scale_shift": "scale_shift",
        "sample_size": 64,
        "up_block_types": [*["SimpleCrossAttnUpBlock2D"] * 3, "ResnetUpsampleBlock2D"],
    }
    base = preset("finetune_lora" if rank else "finetune")
    return replace(
        base,
        name=f"IF-I-{size}, {f'LoRA of rank {rank}' if rank else 'all weights'}",
        stage=StageConfig(
            resolution=64,
            unet=read_unet_config(config, f"IF-I-{size}"),
            schedule=ScheduleConfig(kind="discrete_cosine"),
            low_res_schedule=ScheduleConfig(kind="discrete_cosine"),
            sampling=SamplingConfig(sampler="ddpm", steps=100, guidance=7.0, percentile=0.95, max_scale=1.5),
        ),
        text=TextConfig(width=WIDTH, max_tokens=MAX_TOKENS, padding="full", cleaning="lower", unconditional="empty"),
        data=replace(base.data, on_the_fly=True),
        train=replace(base.train, batch_size=options.batch if not options.plan else 8),
        optim=replace(base.optim, state=state),
        lora=replace(base.lora, rank=rank),
        parallel=ParallelConfig(checkpointing=options.checkpointing),
    )


def planned(what: Experiment, gpu: str) -> dict[str, Any]:
    """Return the memory of a step on one GPU, at the largest micro-batch that fits."""
    about = {"what": what.name, "gpu": gpu}
    try:
        found = plan(what, 1, gpu)
    except UserError as error:
        return {**about, "error": str(error)}
    peak, usable = found["memory"]["peak"] / GIB, found["memory"]["usable"] / GIB
    keep = {name: found[name] for name in ("micro_batch", "checkpointing")}
    return {**about, **keep, "peak_gib": round(peak, 1), "usable_gib": round(usable, 1)}


def step(what: Experiment, options: argparse.Namespace) -> dict[str, Any]:
    """Run training steps on the CPU; return parameters, seconds and memory."""
    torch.manual_seed(0)
    unet = UNet(what.stage.unet)
    with torch.no_grad():
        for parameter in unet.parameters():
            if parameter.ndim > 1 and not parameter.any():  # zero-initialised: trained weights are not zero
                parameter.normal_(std=0.02)
    adapt(unet, what)
    unet = unet.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    apply_activation_checkpointing(unet, what.parallel)
    ema, optimizer = Ema(unet, what.train.ema_decay), build_optimizer(unet.named_parameters(), what.optim)
    cpu, B = torch.device("cpu"), options.batch
    dtype = autocast_dtype(cpu, "auto")
    process = ForwardProcess(
        what.stage, seed=0, batch_size=B, device=cpu, unconditional_LD=torch.zeros(MAX_TOKENS, WIDTH), text_dropout=0.1
    )
    losses, seconds = [], []
    for number in range(options.steps):
        batch = Batch(
            position=number * B,
            keys=[""] * B,
            captions=[""] * B,
            image=torch.randint(256, (B, 3, 64, 64), dtype=torch.uint8),
            low_res=None,
            text=torch.randn(B, MAX_TOKENS, WIDTH),
            text_mask=torch.ones(B, MAX_TOKENS, dtype=torch.bool),
        )
        began = time.monotonic()
        optimizer.set_learning_rate(what.optim.lr)
        clip = what.optim.clip_norm
        result = launch_step(
            unet, [batch], 1, process, optimizer, clip_norm=clip, autocast=lambda: autocast(cpu, dtype)
        ).result()
        ema.update(unet, number + 1)
        seconds.append(round(time.monotonic() - began, 1))
        losses.append(sum(result.losses) / B)
    status = Path("/proc/self/status").read_text()
    peak = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))
    return {
        "what": what.name,
        "parameters": sum(parameter.numel() for parameter in unet.parameters()),
        "trained": sum(parameter.numel() for parameter in unet.parameters() if parameter.requires_grad),
        "precision": str(dtype),
        "batch": B,
        "loss": losses,
        "grad_norm": result.grad_norm,
        "seconds": seconds,
        "peak_gib": round(peak / 2**20, 2),
    }


if __name__ == "__main__":
    main()
