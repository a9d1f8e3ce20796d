"""Compare the forward and backward pass of a U-Net with those of imagen-pytorch's U-Net of similar size.

    python benchmarks/unet_step.py [--preset text2im_64_397m] [--repeats N] [--threads N] [--batch N] [--json FILE]

The two networks differ in structure and size, so time is also given per GFLOP (counted for the forward pass, times
three for forward and backward). They take turns, in an order that is reversed every other round, so that other load on
the machine affects both equally. Needs 8 GiB of memory.
"""

import argparse
import statistics
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import peer
import torch
from measure import BACKWARD, Clock, describe_machine, fill_zeros, gflop, machine, parameter_count
from torch import Tensor, nn

from imagen.errors import UserError, check_number
from imagen.files import write_json
from imagen.models.unet import UNet
from imagen.precision import autocast, autocast_dtype
from imagen.presets import preset
from imagen.train.experiment import Experiment

LAYOUTS = {"channels-last": torch.channels_last, "contiguous": torch.contiguous_format}
Forward = Callable[[nn.Module, Tensor], Tensor]


@dataclass
class Network:
    name: str
    model: nn.Module
    forward: Forward
    gflop: float  # forward and backward pass of one image


@dataclass
class Variant:
    network: Network
    dtype: torch.dtype | None  # of autocast
    layout: str
    clock: Clock = field(default_factory=Clock)

    @property
    def name(self) -> str:
        return f"{self.network.name}, {'fp32' if self.dtype is None else 'bf16 autocast'}, {self.layout}"

    def step(self, x_BCHW: Tensor) -> None:
        """Run and time one forward and backward pass."""
        model = self.network.model.to(memory_format=LAYOUTS[self.layout])  # type: ignore[call-overload]
        x_BCHW = x_BCHW.to(memory_format=LAYOUTS[self.layout])
        with self.clock.running():
            with autocast("cpu", self.dtype):
                out_BCHW = self.network.forward(model, x_BCHW)
            out_BCHW.float().square().mean().backward()
        model.zero_grad(set_to_none=True)


def main() -> None:
    options = arguments()
    if options.threads:
        torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    facts = machine()
    print(describe_machine(facts), flush=True)

    experiment = preset(options.preset)
    with tempfile.TemporaryDirectory() as folder:
        peer.install(Path(folder))
        theirs = peer_network(peer.unet_class(Path(folder)), experiment, options.batch)
        variants = variants_of(our_network(experiment, options.batch), theirs)
        take_turns(variants, experiment, options.batch, options.repeats)

    rows = [row(variant, options.batch) for variant in variants]
    report(rows)
    findings = compare(variants)
    write_json(
        options.json,
        {
            "benchmark": "unet_step",
            "machine": facts,
            "preset": experiment.name,
            "batch": options.batch,
            "text_tokens": text_shape(experiment)[0],
            "variants": rows,
            "findings": findings,
        },
    )
    print(f"\nwritten: {options.json}")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="text2im_64_397m", help="a text-to-image preset (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=5, help="measured rounds, after a warm-up (default: 5)")
    parser.add_argument("--threads", type=int, help="number of torch's threads (default: torch's own choice)")
    parser.add_argument("--batch", type=int, default=1, help="images per batch (default: 1)")
    parser.add_argument("--json", type=Path, default=Path(__file__).with_suffix(".json"), metavar="FILE")
    options = parser.parse_args()
    check_number("--repeats", options.repeats, least=1)
    check_number("--threads", options.threads or 1, least=1)
    check_number("--batch", options.batch, least=1)
    return options


def variants_of(ours: Network, theirs: Network) -> list[Variant]:
    """Return our network as the trainer runs it, and theirs in its default layout and in its faster one."""
    variants = [Variant(ours, None, "channels-last")]
    variants += [Variant(theirs, None, "contiguous"), Variant(theirs, None, "channels-last")]
    if (dtype := autocast_dtype("cpu", "auto")) is not None:
        variants += [Variant(ours, dtype, "channels-last"), Variant(theirs, dtype, "channels-last")]
    return variants


def take_turns(variants: list[Variant], experiment: Experiment, batch: int, repeats: int) -> None:
    """Run all variants in each of `repeats` rounds, after a warm-up round."""
    side = experiment.stage.resolution
    x_BCHW = torch.randn(batch, experiment.stage.unet.image_channels, side, side)
    for index in range(repeats + 1):
        for variant in variants if index % 2 else reversed(variants):
            variant.step(x_BCHW)
            if index == 0:
                variant.clock.forget()


def our_network(experiment: Experiment, batch: int) -> Network:
    tokens, width = text_shape(experiment)
    text_BLD, mask_BL = torch.randn(batch, tokens, width), torch.ones(batch, tokens, dtype=torch.bool)
    label_B = torch.full((batch,), 500.0)

    def forward(model: nn.Module, x_BCHW: Tensor) -> Tensor:
        device = x_BCHW.device
        return model(x_BCHW, label_B.to(device), text=text_BLD.to(device), text_mask=mask_BL.to(device))

    return network("imagen", lambda: UNet(experiment.stage.unet), forward, experiment, batch)


def peer_network(unet: type[nn.Module], experiment: Experiment, batch: int) -> Network:
    tokens, width = text_shape(experiment)
    text_BLD, mask_BL = torch.randn(batch, tokens, width), torch.ones(batch, tokens, dtype=torch.bool)
    logsnr_B = torch.zeros(batch)

    def forward(model: nn.Module, x_BCHW: Tensor) -> Tensor:
        device = x_BCHW.device
        return model(x_BCHW, logsnr_B.to(device), text_embeds=text_BLD.to(device), text_mask=mask_BL.to(device))

    return network("imagen-pytorch", lambda: peer.build(unet, width, tokens), forward, experiment, batch)


def network(name: str, build: Callable[[], nn.Module], forward: Forward, experiment: Experiment, batch: int) -> Network:
    """Build a network twice: on the meta device to count its operations, and with random weights."""
    side = experiment.stage.resolution
    with torch.device("meta"):
        shape_only, x_BCHW = build(), torch.empty(batch, experiment.stage.unet.image_channels, side, side)
        counted = gflop(lambda: forward(shape_only, x_BCHW)) / batch
    model = build()
    fill_zeros(model)
    return Network(name, model, forward, counted * (1 + BACKWARD))


def text_shape(experiment: Experiment) -> tuple[int, int]:
    """Return the number of tokens per text and their dimension. Raises UserError unless it is a base model's preset."""
    if experiment.text is None or experiment.stage.unet.low_res:
        raise UserError(f"{experiment.name} is not a text-to-image preset, and only such presets can be compared")
    return experiment.text.max_tokens, experiment.text.width


def row(variant: Variant, batch: int) -> dict[str, Any]:
    """Return the row of a variant for the table and the JSON file."""
    seconds = variant.clock.seconds / batch
    return {
        "name": variant.name,
        "parameters": parameter_count(variant.network.model),
        "gflop_an_image": variant.network.gflop,
        "s_an_image": seconds,
        "cpu_s_an_image": variant.clock.cpu_seconds / batch,
        "ms_a_gflop": 1e3 * seconds / variant.network.gflop,
        **variant.clock.to_json(),
    }


def report(rows: list[dict[str, Any]]) -> None:
    print(f"\n{'forward + backward':<46}{'parameters':>11}{'GFLOP':>7}{'s/image':>9}{'CPU s':>8}{'ms/GFLOP':>10}")
    for values in rows:
        print(
            f"{values['name']:<46}{values['parameters'] / 1e6:>10.1f}M{values['gflop_an_image']:>7.0f}"
            f"{values['s_an_image']:>9.2f}{values['cpu_s_an_image']:>8.2f}{values['ms_a_gflop']:>10.2f}"
        )
    print("(medians; s/image is wall time; CPU s is the sum over all threads)\n")


def compare(variants: list[Variant]) -> list[dict[str, Any]]:
    """Print and return the speed-ups of pairs of variants."""
    by_name = {variant.name: variant for variant in variants}
    pairs = [
        ("imagen, fp32, channels-last", "imagen-pytorch, fp32, contiguous"),
        ("imagen, fp32, channels-last", "imagen-pytorch, fp32, channels-last"),
        ("imagen, bf16 autocast, channels-last", "imagen, fp32, channels-last"),
        ("imagen, bf16 autocast, channels-last", "imagen-pytorch, bf16 autocast, channels-last"),
    ]
    findings = []
    for one, other in pairs:
        if one not in by_name:
            print("bf16: not measured, because this processor does not support it")
            break
        a, b = by_name[one], by_name[other]
        work = a.network.gflop / b.network.gflop
        wall, cpu = speedup(a.clock.wall, b.clock.wall), speedup(a.clock.cpu, b.clock.cpu)
        print(f"{one} over {other}: speed-up per GFLOP {wall * work:.2f}x (by CPU time {cpu * work:.2f}x)")
        findings.append(
            {
                "of": one,
                "against": other,
                "speedup": wall,
                "cpu_speedup": cpu,
                "speedup_a_gflop": wall * work,
                "cpu_speedup_a_gflop": cpu * work,
            }
        )
    return findings


def speedup(ours: list[float], theirs: list[float]) -> float:
    """Return the median over rounds of the ratio within a round."""
    return statistics.median(b / a for a, b in zip(ours, theirs, strict=True))


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        print(f"unet_step: {error}", file=sys.stderr)
        sys.exit(2)
