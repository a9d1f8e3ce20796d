"""Compare time and memory of a denoising step of DeepFloyd IF's stage I, ours and diffusers'.

    python benchmarks/if_step.py [--channels 192] [--rounds N] [--threads N] [--no-memory] [--json FILE]

A step consists of the U-Net, guidance, dynamic thresholding and a ddpm update with learned variance, for one 64x64
image with guidance (a batch of two) and 77 tokens of dimension 4096. diffusers creates random weights, which all
variants share; their outputs are compared first. The default shape is that of IF-I-M, 372M parameters. The variants
take turns, in an order that is reversed every other round. Peak memory is measured in a separate process and excludes
loading. Needs Linux, diffusers, 12 GiB of memory (4 with `--variants "ours bf16"`) and 3 GiB of disk.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from measure import Clock, describe_machine, machine, parameter_count
from torch import Tensor, nn

from imagen.cascade.storage import read_manifest, read_tensors, write_cascade
from imagen.convert.deepfloyd import MAX_TOKENS, read_stage, read_weights
from imagen.diffusion.samplers import create_sampler, step_logsnrs
from imagen.diffusion.schedule import build_schedule
from imagen.errors import UserError
from imagen.files import write_json
from imagen.stage.config import StageConfig
from imagen.stage.denoiser import Conditioning, build_denoiser, build_predict
from imagen.stage.weights import build_unet
from imagen.text.config import TextConfig

WIDTH = 4096  # embedding dimension of T5-XXL
STEPS, STEP = 100, 50  # number of steps, and the step that is timed
GUIDANCE = 7.0
VARIANTS = ("ours fp32", "ours bf16", "diffusers fp32", "diffusers fp32 channels-last", "diffusers bf16")

BASE = "diffusers fp32"

Step = Callable[[Tensor, Tensor], Tensor]  # (x, noise) -> x one step later


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--channels", type=int, default=192, help="channels of the first level (IF-I-M: 192, XL: 704)")
    parser.add_argument("--rounds", type=int, default=5, help="measured rounds, after a warm-up (default: 5)")
    parser.add_argument("--threads", type=int, help="number of torch's threads (default: torch's own choice)")
    parser.add_argument(
        "--variants",
        nargs="+",
        choices=VARIANTS,
        default=VARIANTS,
        metavar="NAME",
        help="variants to compare with 'diffusers fp32'",
    )
    parser.add_argument("--no-memory", dest="memory", action="store_false", help="do not measure memory")
    parser.add_argument("--json", type=Path, default=Path(__file__).with_suffix(".json"))
    parser.add_argument("--alone", nargs=2, metavar=("VARIANT", "DIR"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    if options.alone:
        print(json.dumps(measure_peak(options.alone[0], Path(options.alone[1]))))
        return
    facts = machine()
    print(describe_machine(facts))
    with tempfile.TemporaryDirectory() as folder:
        write_stage(Path(folder), options.channels)
        rows = compare(Path(folder), options.rounds, list(dict.fromkeys((*options.variants, BASE))))
        if options.memory:
            for row in rows:
                row |= memory(row["name"], Path(folder), options.threads)
    report(rows)
    write_json(options.json, {"machine": facts, "channels": options.channels, "variants": rows})


def write_stage(folder: Path, channels: int) -> None:
    """Write the same stage with random weights as a diffusers pipeline and as a cascade."""
    from diffusers import DDPMScheduler, UNet2DConditionModel

    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        act_fn="gelu",
        addition_embed_type="text",
        attention_head_dim=64,
        block_out_channels=[channels, 2 * channels, 3 * channels, 4 * channels],
        cross_attention_dim=4 * channels,
        cross_attention_norm="group_norm",
        down_block_types=["ResnetDownsampleBlock2D", *["SimpleCrossAttnDownBlock2D"] * 3],
        encoder_hid_dim=WIDTH,
        in_channels=3,
        layers_per_block=3,
        mid_block_type="UNetMidBlock2DSimpleCrossAttn",
        out_channels=6,
        resnet_time_scale_shift="scale_shift",
        sample_size=64,
        up_block_types=[*["SimpleCrossAttnUpBlock2D"] * 3, "ResnetUpsampleBlock2D"],
    )
    scheduler = DDPMScheduler(
        beta_schedule="squaredcos_cap_v2",
        dynamic_thresholding_ratio=0.95,
        sample_max_value=1.5,
        thresholding=True,
        variance_type="learned_range",
    )
    unet.save_pretrained(folder / "unet")
    scheduler.save_pretrained(folder / "scheduler")
    stage = read_stage(folder)
    text = TextConfig(width=WIDTH, max_tokens=MAX_TOKENS, padding="full", unconditional="empty")
    weights = read_weights(folder, stage)
    write_cascade(
        folder / "cascade", text=text, unconditional=torch.zeros(MAX_TOKENS, WIDTH), stages=[(stage, weights, {})]
    )


def load(variant: str, folder: Path) -> tuple[Step, nn.Module]:
    """Return the step of a variant, and its U-Net."""
    if variant.startswith("ours"):
        (record,) = read_manifest(folder / "cascade").stages
        dtype = torch.bfloat16 if "bf16" in variant else None
        tensors = read_tensors(folder / "cascade", record.weights, record.sha256)
        ours = build_unet(record.config.unet, tensors, folder, dtype).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return our_step(ours, record.config, dtype), ours
    theirs = their_network(folder, torch.bfloat16 if "bf16" in variant else torch.float32)
    if "channels-last" in variant:
        theirs = theirs.to(memory_format=torch.channels_last)
    return their_step(theirs, their_scheduler(folder)), theirs


def their_network(folder: Path, dtype: torch.dtype) -> Any:
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel.from_pretrained(folder / "unet").eval().requires_grad_(False).to(dtype)


def their_scheduler(folder: Path) -> Any:
    from diffusers import DDPMScheduler

    return DDPMScheduler.from_pretrained(folder / "scheduler")


def our_step(unet: nn.Module, config: StageConfig, dtype: torch.dtype | None) -> Step:
    levels = step_logsnrs(build_schedule(config.schedule, config.resolution), STEPS)[STEP : STEP + 2]
    text, null = texts()
    mask = {"text_mask": torch.ones(text.shape[:2], dtype=torch.bool)}
    # Created once for all steps, as in sampling: the first call, which is not timed, also caches the text's keys and
    # values.
    conditioning = Conditioning({"text": text, **mask}, {"text": null, **mask})
    denoise = build_denoiser(build_predict(unet, dtype), config, config.sampling, conditioning)

    def step(x_BCHW: Tensor, noise_BCHW: Tensor) -> Tensor:
        return create_sampler("ddpm").sample(denoise, x_BCHW, levels, noise=lambda: noise_BCHW)

    return step


def their_step(unet: Any, scheduler: Any) -> Step:
    """Return the body of IFPipeline's loop, for a batch of two; the noise is an argument of the step."""
    from diffusers.schedulers import scheduling_ddpm

    scheduler.set_timesteps(STEPS)
    t = scheduler.timesteps[STEP]
    text, null = texts()
    both_BLD = torch.cat([null, text]).to(unet.device, unet.dtype)

    @torch.no_grad()
    def step(x_BCHW: Tensor, noise_BCHW: Tensor) -> Tensor:
        scheduling_ddpm.randn_tensor = lambda *shape, **options: noise_BCHW.to(unet.dtype)
        x_BCHW = x_BCHW.to(unet.dtype)
        out_BCHW = unet(torch.cat([x_BCHW, x_BCHW]), t, encoder_hidden_states=both_BLD, return_dict=False)[0]
        uncond_BCHW, cond_BCHW = out_BCHW.chunk(2)
        (uncond_BCHW, _), (cond_BCHW, variance_BCHW) = uncond_BCHW.chunk(2, 1), cond_BCHW.chunk(2, 1)
        guided_BCHW = uncond_BCHW + GUIDANCE * (cond_BCHW - uncond_BCHW)
        return scheduler.step(torch.cat([guided_BCHW, variance_BCHW], 1), t, x_BCHW, return_dict=False)[0].float()

    return step


def inputs() -> tuple[Tensor, Tensor]:
    x, noise = torch.randn(2, 1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    return x, noise


def texts() -> tuple[Tensor, Tensor]:
    text, null = torch.randn(2, 1, MAX_TOKENS, WIDTH, generator=torch.Generator().manual_seed(2))
    return text, null


def compare(folder: Path, rounds: int, variants: list[str]) -> list[dict[str, Any]]:
    """Return a row per variant: times, and the largest difference of its output from that of `BASE`."""
    x_and_noise = inputs()
    steps: dict[str, Step] = {}
    rows: list[dict[str, Any]] = []
    for variant in variants:
        steps[variant], unet = load(variant, folder)
        rows.append({"name": variant, "parameters": parameter_count(unet)})
    reference = steps[BASE](*x_and_noise)  # also warms up
    for row in rows:
        row["largest_difference"] = float((steps[row["name"]](*x_and_noise) - reference).abs().max())
    clocks = {variant: Clock() for variant in variants}
    for number in range(rounds):
        for variant in variants if number % 2 == 0 else reversed(variants):
            with clocks[variant].running():
                steps[variant](*x_and_noise)
    return [row | clocks[row["name"]].to_json() for row in rows]


def memory(variant: str, folder: Path, threads: int | None) -> dict[str, Any]:
    """Return the peak resident memory of two steps in a separate process."""
    command = [sys.executable, __file__, "--alone", variant, str(folder)]
    command += ["--threads", str(threads)] if threads else []
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def measure_peak(variant: str, folder: Path) -> dict[str, Any]:
    """Return the peak resident memory in GiB of two steps in this process, with and without loading."""
    step, unet = load(variant, folder)
    for parameter in unet.parameters():  # copy weights that are memory-mapped from their file
        parameter.data = parameter.data.clone(memory_format=torch.preserve_format)
    loading = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    Path("/proc/self/clear_refs").write_text("5")  # Linux: resets the peak
    for _ in range(2):
        step(*inputs())
    status = Path("/proc/self/status").read_text()
    peak = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))
    return {"peak_gib": peak / 2**20, "peak_with_loading_gib": max(loading, peak / 2**20)}


def report(rows: list[dict[str, Any]]) -> None:
    by_name = {row["name"]: row for row in rows}
    base = by_name[BASE]
    print(f"\n{'one denoising step with guidance':<32}{'s':>7}{'x':>6}{'CPU s':>8}{'x':>6}{'GiB':>7}{'difference':>12}")
    for row in rows:
        wall, cpu = ratio(row["wall_s"], base["wall_s"]), ratio(row["cpu_s"], base["cpu_s"])
        print(
            f"{row['name']:<32}{row['median_wall_s']:>7.2f}{wall:>6.2f}{row['median_cpu_s']:>8.2f}{cpu:>6.2f}"
            f"{row.get('peak_gib', float('nan')):>7.2f}{row['largest_difference']:>12.1e}"
        )
    print(
        "(s and CPU s: medians; x: ratio to diffusers fp32, median of the ratios within a round; difference: largest "
        "difference of the output from that of diffusers fp32)\n"
    )


def ratio(ours: list[float], theirs: list[float]) -> float:
    """Return the median of the ratios within a round."""
    ratios = sorted(a / b for a, b in zip(ours, theirs, strict=True))
    return ratios[len(ratios) // 2]


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        print(f"if_step: {error}", file=sys.stderr)
        sys.exit(2)
