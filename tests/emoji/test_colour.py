"""Test the classification of background colours, on which the scores of the emoji models depend."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("resvg_py")
pytest.importorskip("emoji")

from imagen.emoji.colour import background_colour, to_lab
from imagen.emoji.dataset import PALETTE, compose
from imagen.emoji.openmoji import emojis


@pytest.fixture(scope="module")
def rendered():
    """Render about 800 images of 64 x 64: every object once, with all colours, sizes and positions."""
    names = list(PALETTE)
    compositions = [compose(emoji, names[i % len(names)]) for i, emoji in enumerate(emojis())]
    images = np.stack([np.asarray(Image.open(io.BytesIO(c.render(64)))) for c in compositions])
    return compositions, images


def test_lab_equals_published_values():
    """Check sRGB primaries under D65 (from Lindbloom's calculator, for example)."""
    rgb = np.array([(255, 255, 255), (0, 0, 0), (255, 0, 0), (0, 255, 0), (0, 0, 255), (128, 128, 128)])
    expected = [(100, 0, 0), (0, 0, 0), (53.24, 80.09, 67.20), (87.73, -86.18, 83.18), (32.30, 79.19, -107.86)]
    expected.append((53.59, 0, 0))
    np.testing.assert_allclose(to_lab(rgb), expected, atol=0.02)


def test_palette_is_well_separated():
    lab = to_lab(np.array(list(PALETTE.values())))
    distances = np.linalg.norm(lab[:, None] - lab[None], axis=-1)[~np.eye(len(PALETTE), dtype=bool)]
    assert len(PALETTE) == 12
    assert distances.min() > 49


def accuracy(images, colours) -> float:
    """Return the fraction of images with a correctly classified background."""
    return np.mean([background_colour(image) == colour for image, colour in zip(images, colours, strict=True)])


def test_accuracy_on_rendered_images(rendered):
    compositions, images = rendered
    colours = [c.colour for c in compositions]
    assert accuracy(images, colours) >= 0.99
    large = [i for i, c in enumerate(compositions) if c.size == "large"]
    assert len(large) > 100
    assert accuracy(images[large], [colours[i] for i in large]) >= 0.99


def test_accuracy_with_noise_and_a_colour_cast(rendered):
    compositions, images = rendered
    colours = [c.colour for c in compositions]
    rng = np.random.default_rng(0)
    noisy = np.clip(images + rng.normal(0, 40, images.shape), 0, 255).astype(np.uint8)
    assert accuracy(noisy, colours) >= 0.99
    cast = np.clip(images + np.array([12.0, -12.0, 12.0]), 0, 255).astype(np.uint8)
    assert accuracy(cast, colours) >= 0.99


def test_wrong_colours_lower_the_accuracy(rendered):
    compositions, images = rendered
    colours = [c.colour for c in compositions]
    assert accuracy(images, colours[1:] + colours[:1]) < 0.01  # consecutive images have different colours
    some_wrong = ["teal" if i % 4 == 0 else colour for i, colour in enumerate(colours)]
    assert accuracy(images, some_wrong) == pytest.approx(0.77, abs=0.03)


@pytest.mark.parametrize("name", PALETTE)
def test_axis_orders_and_sizes(name):
    image_HWC = np.full((48, 64, 3), PALETTE[name], dtype=np.uint8)
    image_HWC[6:-6, 6:-6] = (90, 200, 120)  # a drawing that covers most of the image
    tensor_CHW = torch.from_numpy(image_HWC).permute(2, 0, 1)
    assert (
        background_colour(image_HWC) == background_colour(tensor_CHW) == background_colour(tensor_CHW.numpy()) == name
    )


def test_invalid_input_is_an_error():
    with pytest.raises(ValueError, match="uint8"):
        background_colour(np.zeros((8, 8, 3), dtype=np.float32))
    with pytest.raises(ValueError, match="HW3"):
        background_colour(np.zeros((8, 8), dtype=np.uint8))
