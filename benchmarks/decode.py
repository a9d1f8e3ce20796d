"""Measure decoding and resizing of 1024 x 1024 JPEG files on one core, with the loader's code and with Pillow.

    python benchmarks/decode.py [--pictures N] [--rounds N] [--json FILE]

Pillow decodes at full size and downsamples with its bicubic filter, the usual preprocessing for FID. The methods take
turns for each image, in an order that is reversed every other round. The script generates the images: emoji drawings
with added noise that has the spectrum of photographs (amplitude 1/f), quality 90, 4:2:0. Needs `imagen-cascade[demo]`.

Entropy decoding takes most of the time of a scaled decode and grows with the file size, so two noise amplitudes are
measured. One gives 2.2 bits per pixel; for comparison, three photographs that come with matplotlib (grace_hopper) and
scikit-learn (flower, china) take 2.2, 1.4 and 2.9 at this quality. The other gives 3.3.
"""

import argparse
import io
import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measure import Clock, describe_machine, machine
from PIL import Image

from imagen.data.loading.transforms import decode, fit
from imagen.emoji.dataset import compose
from imagen.emoji.openmoji import emojis
from imagen.errors import UserError, check_number
from imagen.files import write_json

SIDE = 1024
TARGETS = (64, 256)
NOISE = {"2.2 bits per pixel": 11.0, "3.3 bits per pixel": 22.0}  # standard deviation, in levels of 255
COLOURS = ("blue", "green", "orange", "purple", "red", "yellow")


def imagen_scaled(data: bytes, side: int) -> np.ndarray:
    """Decode and resize as the loader does in training."""
    return fit(decode(data, min_side=2 * side), side).numpy().transpose(1, 2, 0)


def imagen_full(data: bytes, side: int) -> np.ndarray:
    """Decode and resize as the loader does with data.full_decode."""
    return fit(decode(data), side).numpy().transpose(1, 2, 0)


def pillow(data: bytes, side: int) -> np.ndarray:
    """Decode at full size and downsample with Pillow's bicubic filter."""
    image = Image.open(io.BytesIO(data)).convert("RGB")
    return np.asarray(image.resize((side, side), Image.Resampling.BICUBIC))


def pillow_draft(data: bytes, side: int) -> np.ndarray:
    """Decode with Pillow's scaling in the DCT domain, to at least twice the side, and downsample."""
    image = Image.open(io.BytesIO(data))
    image.draft("RGB", (2 * side, 2 * side))
    return np.asarray(image.convert("RGB").resize((side, side), Image.Resampling.BICUBIC))


METHODS: dict[str, Callable[[bytes, int], np.ndarray]] = {
    "imagen": imagen_scaled,
    "imagen, full decode": imagen_full,
    "Pillow, draft mode": pillow_draft,
    "Pillow": pillow,
}


@dataclass
class Result:
    """Timings and pixel errors of one method at one output size."""

    clock: Clock = field(default_factory=Clock)
    largest: int = 0  # difference from Pillow's pixels, in levels of 255
    mean: float = 0.0  # mean absolute difference, likewise


def make_jpeg(index: int, noise: float) -> bytes:
    """Return a JPEG file of SIDE x SIDE pixels: a drawing with coloured noise of amplitude 1/f."""
    random = np.random.default_rng(index)
    drawing = compose(emojis()[index * 7], COLOURS[index % len(COLOURS)]).render(SIDE)
    pixels = np.asarray(Image.open(io.BytesIO(drawing)).convert("RGB")).astype(np.float32)
    frequency = np.hypot(np.fft.fftfreq(SIDE)[:, None], np.fft.rfftfreq(SIDE)[None])
    frequency[0, 0] = np.inf
    waves = [np.fft.irfft2(np.fft.rfft2(random.standard_normal((SIDE, SIDE))) / frequency) for _ in range(3)]
    light, warm, green = (wave / wave.std() for wave in waves)
    # As in photographs, brightness varies more than colour.
    noise_HWC = noise * np.stack([light + 0.25 * warm, light + 0.15 * green, light - 0.25 * warm], axis=-1)
    file = io.BytesIO()
    image = Image.fromarray((pixels * 0.8 + 25 + noise_HWC).round().clip(0, 255).astype(np.uint8))
    image.save(file, "JPEG", quality=90, subsampling="4:2:0")
    return file.getvalue()


def measure(files: list[bytes], side: int, rounds: int) -> dict[str, Result]:
    """Return the result of each method, over `rounds` rounds after one round of warm-up."""
    results = {name: Result() for name in METHODS}
    for round in range(rounds + 1):
        order = list(METHODS) if round % 2 else list(METHODS)[::-1]
        for data in files:
            for name in order:
                with results[name].clock.running():
                    METHODS[name](data, side)
        if round == 0:
            for result in results.values():
                result.clock.forget()
    for name, result in results.items():
        errors = [np.abs(METHODS[name](data, side).astype(int) - pillow(data, side)) for data in files]
        result.largest, result.mean = max(int(error.max()) for error in errors), float(np.mean(errors))
    return results


def result_row(name: str, side: int, result: Result, reference: Result) -> dict[str, Any]:
    """Return the row of the JSON file for one method; ratios are relative to `reference`, which is Pillow."""
    return {
        "path": name,
        "side": side,
        "images_per_s": 1 / result.clock.seconds,
        "images_per_cpu_s": 1 / result.clock.cpu_seconds,
        "as_fast_as_pillow": reference.clock.seconds / result.clock.seconds,
        "as_fast_as_pillow_cpu": reference.clock.cpu_seconds / result.clock.cpu_seconds,
        "largest_difference": result.largest,
        "mean_difference": result.mean,
        **result.clock.to_json(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=12, metavar="N", help="number of images (default: 12)")
    parser.add_argument("--rounds", type=int, default=10, metavar="N", help="decodes per image (default: 10)")
    parser.add_argument("--json", type=Path, default=Path(__file__).with_suffix(".json"), metavar="FILE")
    options = parser.parse_args()
    check_number("--pictures", options.pictures, least=1)
    check_number("--rounds", options.rounds, least=1)
    torch.set_num_threads(1)
    facts = machine()
    print(describe_machine(facts))
    rows = []
    for detail, noise in NOISE.items():
        files = [make_jpeg(index, noise) for index in range(options.pictures)]
        kilobytes = statistics.mean(map(len, files)) / 1e3
        print(f"\n{len(files)} images of {SIDE} x {SIDE}, {detail}, {kilobytes:.0f} kB on average")
        print(f"{'':<28}{'images/s':>10}{'x Pillow':>10}{'per CPU s':>10}{'x Pillow':>10}{'largest':>9}{'mean':>7}")
        for side in TARGETS:
            results = measure(files, side, options.rounds)
            for name, result in results.items():
                values = {"detail": detail, "kilobytes": kilobytes} | result_row(name, side, result, results["Pillow"])
                rows.append(values)
                print(
                    f"{f'-> {side}: {name}':<28}"
                    f"{values['images_per_s']:>10.0f}{values['as_fast_as_pillow']:>10.2f}"
                    f"{values['images_per_cpu_s']:>10.0f}{values['as_fast_as_pillow_cpu']:>10.2f}"
                    f"{result.largest:>9}{result.mean:>7.2f}"
                )
    print("\n(medians and ratios of medians; largest and mean difference from Pillow's pixels, in levels of 255)")
    write_json(options.json, {"machine": facts, "paths": rows})
    print(f"wrote {options.json}")


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        print(f"decode: {error}", file=sys.stderr)
        sys.exit(2)
