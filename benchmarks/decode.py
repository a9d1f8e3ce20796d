"""Decoding and resizing a JPEG of 1024 x 1024 on one core: the loader's path beside Pillow's, in one run.

    python benchmarks/decode.py [--pictures N] [--rounds N] [--json FILE]

Pillow decodes in full and reduces with its bicubic filter, which is what FID is usually measured on. The paths take
turns, picture by picture and in an order that is reversed every other round. The pictures are made here: emoji
drawings under noise with the spectrum of photographs (amplitude 1/f), quality 90, 4:2:0. Needs `imagen-cascade[demo]`.

Reading the entropy code takes most of the time of a scaled decode and grows with the bytes, so there are two amounts
of noise. One gives 2.2 bits a pixel: three photographs that come with matplotlib (grace_hopper) and scikit-learn
(flower, china) take 2.2, 1.4 and 2.9 at this quality. The other gives 3.3.
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
NOISE = {"2.2 bits a pixel": 11.0, "3.3 bits a pixel": 22.0}  # levels, standard deviation
COLOURS = ("blue", "green", "orange", "purple", "red", "yellow")


def fast(data: bytes, side: int) -> np.ndarray:
    """What the loader does for training."""
    return fit(decode(data, min_side=2 * side), side).numpy().transpose(1, 2, 0)


def full(data: bytes, side: int) -> np.ndarray:
    """What it does with data.full_decode."""
    return fit(decode(data), side).numpy().transpose(1, 2, 0)


def pillow(data: bytes, side: int) -> np.ndarray:
    image = Image.open(io.BytesIO(data)).convert("RGB")
    return np.asarray(image.resize((side, side), Image.Resampling.BICUBIC))


def pillow_draft(data: bytes, side: int) -> np.ndarray:
    """Pillow with its own scaling in the DCT domain, at twice the side as well."""
    image = Image.open(io.BytesIO(data))
    image.draft("RGB", (2 * side, 2 * side))
    return np.asarray(image.convert("RGB").resize((side, side), Image.Resampling.BICUBIC))


PATHS: dict[str, Callable[[bytes, int], np.ndarray]] = {
    "imagen": fast,
    "imagen, full decode": full,
    "Pillow, draft mode": pillow_draft,
    "Pillow": pillow,
}


@dataclass
class Result:
    """One path at one size."""

    clock: Clock = field(default_factory=Clock)
    largest: int = 0  # difference from Pillow's pixels, in levels
    mean: float = 0.0


def picture(index: int, noise: float) -> bytes:
    """A JPEG of SIDE x SIDE: a drawing under coloured noise whose amplitude falls as 1/f."""
    random = np.random.default_rng(index)
    drawing = compose(emojis()[index * 7], COLOURS[index % len(COLOURS)]).render(SIDE)
    pixels = np.asarray(Image.open(io.BytesIO(drawing)).convert("RGB")).astype(np.float32)
    frequency = np.hypot(np.fft.fftfreq(SIDE)[:, None], np.fft.rfftfreq(SIDE)[None])
    frequency[0, 0] = np.inf
    waves = [np.fft.irfft2(np.fft.rfft2(random.standard_normal((SIDE, SIDE))) / frequency) for _ in range(3)]
    light, warm, green = (wave / wave.std() for wave in waves)
    # As in photographs, most of it is brightness, little is colour.
    noise_HWC = noise * np.stack([light + 0.25 * warm, light + 0.15 * green, light - 0.25 * warm], axis=-1)
    file = io.BytesIO()
    image = Image.fromarray((pixels * 0.8 + 25 + noise_HWC).round().clip(0, 255).astype(np.uint8))
    image.save(file, "JPEG", quality=90, subsampling="4:2:0")
    return file.getvalue()


def measure(pictures: list[bytes], side: int, rounds: int) -> dict[str, Result]:
    results = {name: Result() for name in PATHS}
    for round in range(rounds + 1):
        order = list(PATHS) if round % 2 else list(PATHS)[::-1]
        for data in pictures:
            for name in order:
                with results[name].clock.running():
                    PATHS[name](data, side)
        if round == 0:
            for result in results.values():
                result.clock.forget()
    for name, result in results.items():
        apart = [np.abs(PATHS[name](data, side).astype(int) - pillow(data, side)) for data in pictures]
        result.largest, result.mean = max(int(a.max()) for a in apart), float(np.mean(apart))
    return results


def row(name: str, side: int, result: Result, reference: Result) -> dict[str, Any]:
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
    parser.add_argument("--pictures", type=int, default=12, metavar="N", help="different ones (default: 12)")
    parser.add_argument("--rounds", type=int, default=10, metavar="N", help="times each is decoded (default: 10)")
    parser.add_argument("--json", type=Path, default=Path(__file__).with_suffix(".json"), metavar="FILE")
    options = parser.parse_args()
    check_number("--pictures", options.pictures, least=1)
    check_number("--rounds", options.rounds, least=1)
    torch.set_num_threads(1)
    facts = machine()
    print(describe_machine(facts))
    rows = []
    for detail, noise in NOISE.items():
        pictures = [picture(index, noise) for index in range(options.pictures)]
        kilobytes = statistics.mean(map(len, pictures)) / 1e3
        print(f"\n{len(pictures)} pictures of {SIDE} x {SIDE}, {detail}, {kilobytes:.0f} kB on average")
        print(f"{'':<28}{'images/s':>10}{'x Pillow':>10}{'a CPU s':>10}{'x Pillow':>10}{'largest':>9}{'mean':>7}")
        for side in TARGETS:
            results = measure(pictures, side, options.rounds)
            for name, result in results.items():
                values = {"detail": detail, "kilobytes": kilobytes} | row(name, side, result, results["Pillow"])
                rows.append(values)
                print(
                    f"{f'-> {side}: {name}':<28}"
                    f"{values['images_per_s']:>10.0f}{values['as_fast_as_pillow']:>10.2f}"
                    f"{values['images_per_cpu_s']:>10.0f}{values['as_fast_as_pillow_cpu']:>10.2f}"
                    f"{result.largest:>9}{result.mean:>7.2f}"
                )
    print("\n(medians; ratios of medians; differences from Pillow's pixels in levels of 255)")
    write_json(options.json, {"machine": facts, "paths": rows})
    print(f"wrote {options.json}")


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        print(f"decode: {error}", file=sys.stderr)
        sys.exit(2)
