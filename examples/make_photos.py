"""Write a small folder of captioned images, to try `photos.sh` without your own photographs.

    python examples/make_photos.py photos

It contains 48 JPEG files of 320 x 256 pixels, each with a .txt caption beside it. An image shows a landscape under a
sky with a sun.
"""

import argparse
import random
from pathlib import Path

from PIL import Image, ImageDraw, ImageFilter

SKIES = {"blue": (120, 170, 230), "grey": (170, 175, 180), "red": (225, 120, 90), "dark": (35, 40, 70)}
LANDS = {"meadow": (80, 140, 60), "desert": (205, 170, 110), "sea": (40, 90, 140)}
WIDTH, HEIGHT, VARIANTS = 320, 256, 4


def landscape(sky: str, land: str, rng: random.Random) -> Image.Image:
    """Return an RGB image of a landscape, WIDTH x HEIGHT pixels."""
    image = Image.new("RGB", (WIDTH, HEIGHT), SKIES[sky])
    draw = ImageDraw.Draw(image)
    horizon = rng.randint(HEIGHT // 2, 2 * HEIGHT // 3)
    x, y, radius = rng.randint(40, WIDTH - 40), rng.randint(30, horizon - 40), rng.randint(12, 24)
    draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=(250, 235, 180))
    draw.rectangle((0, horizon, WIDTH, HEIGHT), fill=LANDS[land])
    noise = Image.effect_noise((WIDTH, HEIGHT), 24).convert("RGB")
    return Image.blend(image.filter(ImageFilter.GaussianBlur(2)), noise, 0.1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="folder to write to")
    folder = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    rng = random.Random(0)
    for sky in SKIES:
        for land in LANDS:
            for variant in range(VARIANTS):
                name = f"{sky}-{land}-{variant}"
                landscape(sky, land, rng).save(folder / f"{name}.jpg", quality=90)
                (folder / f"{name}.txt").write_text(f"a {land} under a {sky} sky\n")


if __name__ == "__main__":
    main()
