"""Write a folder of captioned photographs of mixed sizes, for trying `photos.sh` without any of your own.

    pip install scikit-image scikit-learn      # both ship a few photographs
    python examples/make_photos.py photos

The 200 images are random crops of those photographs, some in black and white, each as a JPEG file with a .txt caption
beside it. Without these packages they are simple landscapes. Equal packages give equal files.
"""

import argparse
import importlib.util
import random
from pathlib import Path

from PIL import Image, ImageDraw, ImageFilter

# Module and file within its package, and what the photograph shows.
PHOTOGRAPHS = {
    "sklearn/datasets/images/china.jpg": "a Chinese temple under a grey sky",
    "sklearn/datasets/images/flower.jpg": "an orange flower",
    "skimage/data/astronaut.png": "an astronaut in front of a flag",
    "skimage/data/chelsea.png": "the face of a cat",
    "skimage/data/coffee.png": "a cup of coffee on a wooden table",
    "skimage/data/rocket.jpg": "a rocket at dawn",
    "skimage/data/hubble_deep_field.jpg": "galaxies in the night sky",
    "skimage/data/motorcycle_left.png": "a motorcycle in a workshop",
    "skimage/data/retina.jpg": "the retina of an eye",
    "skimage/data/brick.png": "a brick wall",
    "skimage/data/grass.png": "a lawn",
}
SKIES = {"blue": (120, 170, 230), "grey": (170, 175, 180), "red": (225, 120, 90), "dark": (35, 40, 70)}
LANDS = {"meadow": (80, 140, 60), "desert": (205, 170, 110), "sea": (40, 90, 140)}
ASPECTS = (1.0, 4 / 3, 3 / 2, 3 / 4, 2 / 3)  # width over height
LEAST = 240  # pixels of the shorter side: some images are too small for a stage of 256


def installed() -> dict[Path, str]:
    """Return the path of each photograph that an installed package has, with its caption."""
    found = {}
    for name, caption in PHOTOGRAPHS.items():
        package, _, rest = name.partition("/")
        spec = importlib.util.find_spec(package)  # does not import it
        for folder in (spec and spec.submodule_search_locations) or ():
            if (path := Path(folder) / rest).exists():
                found[path] = caption
    return found


def crop(image: Image.Image, rng: random.Random) -> Image.Image:
    """Return a random region of an image, with a random aspect ratio and size."""
    aspect = rng.choice(ASPECTS)
    height = min(image.height, image.width / aspect)
    height *= rng.uniform(min(1.0, LEAST / min(height, height * aspect)), 1.0)
    width, height = int(height * aspect), int(height)
    left, top = rng.randint(0, image.width - width), rng.randint(0, image.height - height)
    return image.crop((left, top, left + width, top + height))


def landscape(sky: str, land: str, rng: random.Random) -> Image.Image:
    """Return an image of a sun over a landscape, RGB, 640 x 480 pixels."""
    image = Image.new("RGB", (640, 480), SKIES[sky])
    draw = ImageDraw.Draw(image)
    horizon = rng.randint(240, 320)
    x, y, radius = rng.randint(80, 560), rng.randint(60, horizon - 80), rng.randint(24, 48)
    draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=(250, 235, 180))
    draw.rectangle((0, horizon, 640, 480), fill=LANDS[land])
    noise = Image.effect_noise((640, 480), 24).convert("RGB")
    return Image.blend(image.filter(ImageFilter.GaussianBlur(2)), noise, 0.1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--count", type=int, default=200, metavar="N", help="number of images (default: 200)")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    rng, photographs = random.Random(0), installed()
    images = {caption: Image.open(path).convert("RGB") for path, caption in photographs.items()}
    for number in range(options.count):
        if images:
            caption = list(images)[number % len(images)]
            image = crop(images[caption], rng)
        else:
            sky, land = rng.choice(list(SKIES)), rng.choice(list(LANDS))
            caption, image = f"a {land} under a {sky} sky", crop(landscape(sky, land, rng), rng)
        if rng.random() < 0.2:
            caption, image = f"{caption}, in black and white", image.convert("L").convert("RGB")
        image.save(options.folder / f"{number:04d}.jpg", quality=92)
        (options.folder / f"{number:04d}.txt").write_text(f"{caption}\n")
    what = f"crops of {len(images)} photographs" if images else "landscapes"
    print(f"{options.folder}: {options.count} images, {what}")


if __name__ == "__main__":
    main()
