"""Measure a preset's training step on random data: images per second, and the time of each phase.

    python benchmarks/train_step.py emoji_64 --batch 32 [--precision bf16] [--steps N] [--threads N] [--json FILE]

The step is the trainer's: forward process, forward pass and loss, backward pass, clipping, optimizer and EMA. Data
loading is not included.
"""

import argparse
import sys
from pathlib import Path
from typing import get_args

import torch
from measure import BACKWARD, Clock, describe_machine, fill_zeros, machine
from torch import nn

from imagen.errors import UserError, check_number
from imagen.files import write_json
from imagen.models.unet import UNet
from imagen.precision import Precision, autocast, autocast_dtype, precision_name
from imagen.presets import preset
from imagen.presets.description import describe
from imagen.stage.loss import ForwardProcess
from imagen.train.ema import Ema
from imagen.train.experiment import Experiment
from imagen.train.optim import build_optimizer
from imagen.train.throughput import random_batch

PHASES = ("noise", "forward", "backward", "clip, optimizer, EMA")


def main() -> None:
    options = arguments()
    if options.threads:
        torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    facts = machine()
    print(describe_machine(facts), flush=True)

    experiment = preset(options.preset)
    dtype = autocast_dtype("cpu", options.precision)
    precision = precision_name(dtype)
    about = describe(experiment)
    print(f"{experiment.name}: {about['parameters'] / 1e6:,.1f}M parameters, batch {options.batch}, {precision}")
    clocks = measure(experiment, options.batch, options.steps, dtype)

    seconds = sum(clock.seconds for clock in clocks.values())
    forward = about["gflop"] * options.batch
    work = dict(zip(PHASES, (0, forward, BACKWARD * forward, 0), strict=True))
    rates = {phase: work[phase] / clock.seconds for phase, clock in clocks.items()}
    rates["step"] = sum(work.values()) / seconds
    report(clocks, rates, options.batch)
    write_json(
        options.json,
        {
            "benchmark": "train_step",
            "machine": facts,
            "preset": experiment.name,
            "parameters": about["parameters"],
            "side": about["side"],
            "batch": options.batch,
            "precision": precision,
            "images_per_s": options.batch / seconds,
            "gflop_an_image": sum(work.values()) / options.batch,
            "gflop_per_s": rates,
            "phases": {phase: clock.to_json() for phase, clock in clocks.items()},
        },
    )
    print(f"written: {options.json}")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("preset", help="`imagen presets` lists them")
    parser.add_argument("--batch", type=int, default=16, help="images per step (default: 16)")
    parser.add_argument("--precision", choices=get_args(Precision), default="auto", help="default: auto")
    parser.add_argument("--steps", type=int, default=10, help="measured steps, after a warm-up of two (default: 10)")
    parser.add_argument("--threads", type=int, help="number of torch's threads (default: torch's own choice)")
    parser.add_argument("--json", type=Path, default=Path(__file__).with_suffix(".json"), metavar="FILE")
    options = parser.parse_args()
    check_number("--batch", options.batch, least=1)
    check_number("--steps", options.steps, least=1)
    check_number("--threads", options.threads or 1, least=1)
    return options


def measure(experiment: Experiment, batch: int, steps: int, dtype: torch.dtype | None) -> dict[str, Clock]:
    """Return a clock per phase, with `steps` entries."""
    clocks = {phase: Clock() for phase in PHASES}
    unet = UNet(experiment.stage.unet)
    fill_zeros(unet)
    unet.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = build_optimizer(unet.named_parameters(), experiment.optim)
    ema = Ema(unet, experiment.train.ema_decay)
    forward_process = ForwardProcess(
        experiment.stage,
        seed=0,
        batch_size=batch,
        device=torch.device("cpu"),
        unconditional_LD=None if experiment.text is None else torch.zeros(1, experiment.text.width),
        text_dropout=experiment.train.text_dropout,
    )
    warm_up = 2
    for step in range(1, steps + warm_up + 1):
        data = random_batch(experiment, position=step * batch, count=batch)
        with clocks["noise"].running():
            noised = forward_process(data)
        with clocks["forward"].running(), autocast("cpu", dtype):
            loss = forward_process.loss(unet, noised).total.mean()
        with clocks["backward"].running():
            loss.backward()
        with clocks["clip, optimizer, EMA"].running():
            nn.utils.clip_grad_norm_(unet.parameters(), experiment.optim.clip_norm)
            optimizer.step()
            optimizer.zero_grad()
            ema.update(unet, step)
        if step == warm_up:
            for clock in clocks.values():
                clock.forget()
    return clocks


def report(clocks: dict[str, Clock], rates: dict[str, float], batch: int) -> None:
    seconds, cpu = sum(clock.seconds for clock in clocks.values()), sum(clock.cpu_seconds for clock in clocks.values())
    print(f"\n{'':<18}{'ms':>9}{'share':>8}{'CPU ms':>9}{'GFLOP/s':>9}")
    for phase, clock in clocks.items():
        share, rate = clock.seconds / seconds, f"{rates[phase]:>9.0f}" if rates[phase] else ""
        print(f"{phase:<18}{1e3 * clock.seconds:>9.1f}{share:>8.0%}{1e3 * clock.cpu_seconds:>9.1f}{rate}")
    print(f"{'step':<18}{1e3 * seconds:>9.1f}{'':>8}{1e3 * cpu:>9.1f}{rates['step']:>9.0f}")
    print(f"\n{batch / seconds:.1f} images/s, {batch / cpu:.1f} images per CPU second")


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        print(f"train_step: {error}", file=sys.stderr)
        sys.exit(2)
