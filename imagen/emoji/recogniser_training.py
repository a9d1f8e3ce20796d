"""Train the recogniser on the original drawings only, without shards, captions or generated images.

    python -m imagen.emoji.recogniser_training --out FOLDER      # the same command resumes

Each training image is composed anew: one to four drawings at random positions, slightly rotated and stretched, on a
background near a colour of the palette. It is then blurred and noised by random amounts, because generated images are
neither sharp nor free of noise.
"""

import argparse
import hashlib
import math
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageFilter
from torch import Tensor

from imagen.emoji.openmoji import Emoji, rasterise, svg
from imagen.emoji.picture import PALETTE, hashed
from imagen.emoji.recogniser import CONFIG, GRID, SIDE, WEIGHTS, Recogniser, to_input
from imagen.emoji.recogniser_checkpoint import resume_training, save_training
from imagen.emoji.scene import LAYOUTS
from imagen.emoji.single import OBJECTS, objects
from imagen.errors import UserError, exit_on_user_error
from imagen.files import replacing, write_json
from imagen.precision import autocast, autocast_dtype
from imagen.tensors import save_tensors

SPRITE = 96  # pixels, side of a drawing, which is rasterised once
LR = 2e-3  # maximum learning rate
SAVE_EVERY = 250  # steps between checkpoints
CHECKPOINT = "training.safetensors"  # deleted when the recogniser is saved


class Labelled(NamedTuple):
    """A training image and its labels."""

    image: Image.Image
    centres: list[tuple[int, float, float]]  # (index of the object, x, y); x and y in fractions of the side


def plain_background(rng: random.Random) -> Image.Image:
    """Return a uniform background with a colour near one of the palette."""
    red, green, blue = (
        min(max(value + round(rng.gauss(0, 12)), 0), 255) for value in rng.choice(list(PALETTE.values()))
    )
    return Image.new("RGB", (SIDE, SIDE), (red, green, blue))


def print_now(line: str) -> None:
    """Print a line that a log file shows at once."""
    print(line, flush=True)


def train_recogniser(
    sprites: Mapping[str, Image.Image],
    *,
    background: Callable[[random.Random], Image.Image] = plain_background,
    steps: int = 2500,
    batch_size: int = 48,
    width: int = 48,
    seed: int = 0,
    checkpoint: Path | None = None,
    report: Callable[[str], None] = print_now,
) -> Recogniser:
    """Train a recogniser of `sprites`, which maps names to drawings (RGBA).

    background: returns an RGB image of 64 x 64 pixels.
    checkpoint: a file from which the training resumes, and to which it is saved every `SAVE_EVERY` steps.
    report: receives lines of progress.
    The result is deterministic up to rounding, and the same after resuming. Raises UserError if the checkpoint is
    damaged or of another training.
    """
    settings = {"steps": steps, "batch_size": batch_size, "width": width, "seed": seed}
    torch.manual_seed(seed)
    network, drawings = Recogniser(list(sprites), width), list(sprites.values())
    optimizer = torch.optim.AdamW(network.parameters(), lr=LR, weight_decay=0.02)
    about = {
        "sprites": _sha256(name.encode() + image.tobytes() for name, image in sprites.items()),
        **{name: str(value) for name, value in settings.items()},
    }
    first = 0 if checkpoint is None else resume_training(checkpoint, network, optimizer, about)
    if first:
        report(f"resumed after step {first} of {steps}")
    running, cpu = 0.0, torch.device("cpu")
    low_precision = partial(autocast, cpu, autocast_dtype(cpu, "auto"))
    for step in range(first + 1, steps + 1):
        rng, noise = (
            random.Random(hashed(seed, step)),
            torch.Generator().manual_seed(hashed(seed, step, "noise") % 2**63),
        )
        batch = [compose(drawings, rng, background) for _ in range(batch_size)]
        x_BCHW = to_input([each.image for each in batch])
        std_B111 = torch.rand(batch_size, 1, 1, 1, generator=noise) ** 2 * 0.25
        x_BCHW = (x_BCHW + torch.randn(x_BCHW.shape, generator=noise) * std_B111).clamp(-1, 1)
        with low_precision():
            value, accuracy = loss(network, x_BCHW, batch)
        optimizer.zero_grad()
        value.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.param_groups[0]["lr"] = LR * one_cycle(step - 1, steps)
        optimizer.step()
        running = 0.98 * running + 0.02 * accuracy
        if step % 100 == 0 or step == steps:
            named = running / (1 - 0.98 ** (step - first))
            report(f"step {step} of {steps}: loss {value.item():.3f}, {named:.1%} of objects classified correctly")
        if checkpoint is not None and (step % SAVE_EVERY == 0 or step == steps):
            save_training(checkpoint, network, optimizer, step, about)
    return network.eval()


def _sha256(parts: Iterable[bytes]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()


def one_cycle(step: int, steps: int) -> float:
    """Return the learning rate as a fraction of its maximum: a rise over a tenth of the steps, then a cosine to 0."""
    rise = 0.1 * steps
    if step < rise:
        return 0.04 + 0.96 * (1 - math.cos(math.pi * step / rise)) / 2
    return (1 + math.cos(math.pi * (step - rise) / (steps - rise))) / 2


def loss(network: Recogniser, x_BCHW: Tensor, batch: Sequence[Labelled]) -> tuple[Tensor, float]:
    """Return the loss, and the fraction of objects that are classified correctly at the cell of their centre."""
    centre_BHW, kind_BKHW = network(x_BCHW)
    centre_BHW, kind_BKHW = centre_BHW.float(), kind_BKHW.float()
    target_BHW, weight_BHW = torch.zeros_like(centre_BHW), torch.ones_like(centre_BHW)
    cells: list[tuple[int, int, int]] = []
    kinds: list[int] = []
    for index, each in enumerate(batch):
        for kind, x, y in each.centres:
            row, column = (min(max(int(value * GRID), 0), GRID - 1) for value in (y, x))
            # Ignore the neighbouring cells, because a centre near the border of two cells may belong to either.
            weight_BHW[index, max(row - 1, 0) : row + 2, max(column - 1, 0) : column + 2] = 0
            cells.append((index, row, column))
            kinds.append(kind)
    b, r, c = map(list, zip(*cells, strict=True))
    target_BHW[b, r, c] = 1.0
    weight_BHW[b, r, c] = 20.0  # there are about 200 empty cells per centre
    logits_NK, kind_N = kind_BKHW[b, :, r, c], torch.tensor(kinds)
    centre = F.binary_cross_entropy_with_logits(centre_BHW, target_BHW, weight_BHW)
    return 2 * centre + F.cross_entropy(logits_NK, kind_N), float((logits_NK.argmax(1) == kind_N).float().mean())


def compose(
    sprites: Sequence[Image.Image],
    rng: random.Random,
    background: Callable[[random.Random], Image.Image] = plain_background,
) -> Labelled:
    """Compose one training image with its labels."""
    count = rng.choices((1, 2, 3, 4), (0.6, 0.24, 0.08, 0.08))[0]
    alike = count > 2 or rng.random() < 0.3
    first = rng.randrange(len(sprites))
    kinds = [first if alike else rng.randrange(len(sprites)) for _ in range(count)]
    if count == 1:
        side = rng.uniform(0.34, 1.06)
        room = max(1 - side, 0.06)
        centres = [(0.5 + room * rng.uniform(-0.5, 0.5), 0.5 + room * rng.uniform(-0.5, 0.5))]
    else:
        side = rng.uniform(0.36, 0.50)
        layout = LAYOUTS[count]
        if count == 2 and rng.random() < 0.5:
            layout = tuple((y, x) for x, y in layout)
        centres = [(0.5 + x + rng.uniform(-0.06, 0.06), 0.5 + y + rng.uniform(-0.06, 0.06)) for x, y in layout]
    image = background(rng)
    for kind, (x, y) in zip(kinds, centres, strict=True):
        paste(image, sprites[kind], side * rng.uniform(0.94, 1.06), x, y, rng)
    if rng.random() < 0.6:
        image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0.3, 1.6)))
    return Labelled(image, [(kind, x, y) for kind, (x, y) in zip(kinds, centres, strict=True)])


def paste(image: Image.Image, sprite: Image.Image, side: float, x: float, y: float, rng: random.Random) -> None:
    """Draw `sprite` in a square of `side` around (x, y), with small random changes of rotation, aspect and colour."""
    size = max(round(side * SIDE), 8)
    small = sprite.resize((size, size), Image.Resampling.BOX if size < SPRITE else Image.Resampling.BICUBIC)
    angle, stretch = math.radians(rng.gauss(0, 4)), math.exp(rng.gauss(0, 0.05))
    a, b = math.cos(angle) * stretch, math.sin(angle)
    c, d = -math.sin(angle), math.cos(angle) / stretch
    half = size / 2
    matrix = (a, b, half - a * half - b * half, c, d, half - c * half - d * half)
    small = small.transform((size, size), Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR)
    gain = [math.exp(rng.gauss(0, 0.06)) for _ in range(3)]
    red, green, blue, alpha = small.split()
    bands = [
        band.point(lambda value, g=g: min(int(value * g), 255))
        for band, g in zip((red, green, blue), gain, strict=True)
    ]
    left, top = round(x * SIDE - half), round(y * SIDE - half)
    image.paste(Image.merge("RGB", bands), (left, top), alpha)


def render_sprite(emoji: Emoji) -> Image.Image:
    """Render a drawing without a background, as RGBA with straight (not premultiplied) alpha."""
    element = f'<svg xmlns="http://www.w3.org/2000/svg" width="{SPRITE}" height="{SPRITE}" viewBox="0 0 72 72">'
    return rasterise(f"{element}{svg(emoji.code)}</svg>").convert("RGBA")


def save_recogniser(network: Recogniser, folder: str | Path, **about: object) -> None:
    """Write `folder`/recogniser.safetensors (float16) and `folder`/recogniser.json, which also stores `about`.

    Deletes the checkpoint of its training in `folder`.
    """
    folder = Path(folder)
    with replacing(folder / WEIGHTS) as temporary:
        save_tensors({name: value.half() for name, value in network.state_dict().items()}, temporary)
    write_json(folder / CONFIG, {"width": network.width, "names": network.names, **about})
    delete_checkpoint(folder)


def delete_checkpoint(folder: Path) -> None:
    (folder / CHECKPOINT).unlink(missing_ok=True)


def blur_with_noise(
    image: Image.Image, rng: np.random.Generator, blur: float = 1.0, noise: float = 16.0
) -> Image.Image:
    """Return `image` with a blur of `blur` pixels and noise of `noise` levels of 255, like a generated image."""
    values = np.asarray(image.filter(ImageFilter.GaussianBlur(blur))).astype(np.float32)
    return Image.fromarray((values + rng.normal(0, noise, values.shape)).round().clip(0, 255).astype(np.uint8))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for the recogniser")
    parser.add_argument("--objects", type=int, default=OBJECTS, help="number of objects (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=2500, help="optimizer steps (default: %(default)s)")
    options = parser.parse_args()
    if (options.out / CONFIG).is_file():
        raise UserError(f"{options.out} contains a trained recogniser; choose another folder or delete it")
    sprites = {emoji.name: render_sprite(emoji) for emoji in objects(options.objects)}
    network = train_recogniser(sprites, steps=options.steps, checkpoint=options.out / CHECKPOINT)
    save_recogniser(network, options.out, steps=options.steps)


if __name__ == "__main__":
    with exit_on_user_error():
        main()
