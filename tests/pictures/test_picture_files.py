"""Test PNG metadata, image files and contact sheets."""

import numpy as np
import pytest
from PIL import Image, ImageFont

from imagen.errors import UserError
from imagen.pictures import contact_sheet, read_metadata, read_picture, write_png
from imagen.pictures.sheet import wrap_text


def noise(height: int, width: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def test_png_stores_pixels_and_metadata(tmp_path):
    path, image = tmp_path / "new" / "a.png", noise(20, 30)
    metadata = {"prompt": 'ein "Café" – 猫 🐙\n{}', "seed": 2**63 - 1, "stages": [{"guidance": 1.35, "interval": None}]}
    write_png(path, image, metadata)
    assert read_metadata(path) == metadata
    assert np.array_equal(np.asarray(read_picture(path)), np.asarray(image))
    assert [p.name for p in path.parent.iterdir()] == ["a.png"]
    write_png(path, noise(20, 30, 1))
    assert read_metadata(path) is None


def test_errors_name_broken_files(tmp_path):
    for read in (read_metadata, read_picture):
        with pytest.raises(UserError, match=r"no\.png does not exist"):
            read(tmp_path / "no.png")
    write_png(tmp_path / "a.png", noise(64, 64), {"prompt": "x"})
    (tmp_path / "cut.png").write_bytes((tmp_path / "a.png").read_bytes()[:3000])
    (tmp_path / "text.png").write_text("not an image")
    for name in ("cut.png", "text.png"):
        for read in (read_metadata, read_picture):
            with pytest.raises(UserError, match=rf"{name} is not "):
                read(tmp_path / name)


def test_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.png"
    write_png(path, noise(8, 8), {"seed": 1})
    with pytest.raises(ValueError):
        write_png(path, noise(8, 8, 1), {"guidance": float("nan")})
    assert read_metadata(path) == {"seed": 1}


def test_sheet_shows_every_image_in_order():
    colours = ["red", "lime", "blue", "yellow", "cyan"]
    sheet = contact_sheet([Image.new("RGB", (64, 64), colour) for colour in colours], columns=2, cell=128)
    pixels = np.asarray(sheet)
    step = 128 + 128 // 16
    for number, colour in enumerate(colours):
        y, x = 8 + number // 2 * step + 64, 8 + number % 2 * step + 64
        assert tuple(pixels[y, x]) == Image.new("RGB", (1, 1), colour).getpixel((0, 0))
        area = (pixels == np.array(Image.new("RGB", (1, 1), colour).getpixel((0, 0)))).all(-1).sum()
        assert area == 128 * 128  # upscaled by an integer factor


def test_captions_are_below_their_images_and_inside_their_columns():
    caption = "an octopus on a blue background, small, at the upper left, seen from far away"
    bare = contact_sheet([Image.new("RGB", (128, 128))] * 2, columns=2)
    sheet = contact_sheet([Image.new("RGB", (128, 128))] * 2, [caption, ""], columns=2)
    assert sheet.width == bare.width and sheet.height > bare.height + 3 * 12
    below = np.asarray(sheet.convert("L"))[8 + 128 + 1 :]
    assert (below[:, : 8 + 128] < 128).any(), "the caption is drawn"
    assert (below[:, 8 + 128 :] > 250).all(), "and does not leave its column"
    assert (below[-3:] > 250).all(), "and is not cropped at the bottom"


def test_wrapping_preserves_every_letter():
    font = ImageFont.load_default(12)
    text = "a Donaudampfschifffahrtsgesellschaftskapitänsmütze on a blue background"
    lines = wrap_text(text, font, 100)
    assert "".join(lines).replace(" ", "") == text.replace(" ", "")
    assert all(font.getlength(line) <= 100 for line in lines)


def test_sheet_with_other_sizes_and_a_title():
    images = [noise(100, 300), noise(1024, 512), noise(16, 16)]
    sheet = contact_sheet(images, ["wide", "high", "small"], columns=3, cell=128, title="prompts of the held-out set")
    assert sheet.width == 3 * (128 + 8) + 8
    assert sheet.height > contact_sheet(images, ["wide", "high", "small"], columns=3, cell=128).height


def test_images_are_read_upright_and_on_white(tmp_path):
    image, exif = noise(8, 16), Image.Exif()
    exif[0x0112] = 6  # the camera was rotated: rotate clockwise by 90 degrees
    image.save(tmp_path / "turned.png", exif=exif)
    assert np.array_equal(np.asarray(read_picture(tmp_path / "turned.png")), np.rot90(np.asarray(image), -1))
    Image.new("RGBA", (2, 2), (255, 0, 0, 0)).save(tmp_path / "clear.png")
    assert read_picture(tmp_path / "clear.png").getpixel((0, 0)) == (255, 255, 255)


def test_metadata_of_a_file_that_is_no_image_is_an_error(tmp_path):
    (tmp_path / "page.jpg").write_text("<html>")
    with pytest.raises(UserError) as error:
        read_metadata(tmp_path / "page.jpg")
    assert str(error.value) == f"{tmp_path}/page.jpg is not an image in a supported format"
