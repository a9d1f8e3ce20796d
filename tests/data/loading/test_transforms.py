"""Test decoding, resizing and cropping against Pillow and NumPy."""

import io
import struct
import zlib

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from imagen.data.loading.transforms import aligned_crop, decode, fit, mentions_left_or_right, resize
from imagen.data.shards.images import BadSample, choose_image
from imagen.pictures import MAX_PIXELS


def encode(image: Image.Image, kind: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def smooth(side: int, height: int | None = None) -> np.ndarray:
    y, x = np.mgrid[: height or side, :side] / side
    waves = [np.sin(3 * x + 2 * y), np.cos(4 * y - x), np.sin(5 * x * y + 1)]
    return (127.5 + 110 * np.stack(waves, axis=-1)).round().astype(np.uint8)


def to_array(image_CHW) -> np.ndarray:
    return image_CHW.permute(1, 2, 0).numpy()


def test_lossless_images_decode_exactly():
    pixels = np.random.default_rng(0).integers(0, 256, (13, 17, 3), np.uint8)
    for data in (encode(Image.fromarray(pixels), "PNG"), encode(Image.fromarray(pixels), "WEBP", lossless=True)):
        assert np.array_equal(to_array(decode(data)), pixels)


def test_every_mode_becomes_rgb():
    grey = np.arange(256, dtype=np.uint8).reshape(16, 16)
    for image in (
        Image.fromarray(grey),
        Image.fromarray(grey.astype(np.uint16) * 257),
        Image.fromarray(grey).convert("P"),
    ):
        assert np.array_equal(to_array(decode(encode(image, "PNG"))), np.repeat(grey[..., None], 3, axis=2))
    cmyk = Image.fromarray(smooth(32)).convert("CMYK")
    assert decode(encode(cmyk, "JPEG")).shape == (3, 32, 32)


def test_transparency_is_composited_on_white():
    rgba = np.zeros((1, 3, 4), np.uint8)
    rgba[0, :, 3] = 0, 255, 51  # black: invisible, opaque, one fifth
    assert to_array(decode(encode(Image.fromarray(rgba), "PNG")))[0, :, 0].tolist() == [255, 0, 204]
    palette = Image.fromarray(np.zeros((2, 2), np.uint8)).convert("P")
    assert (decode(encode(palette, "PNG", transparency=0)) == 255).all()


def test_jpeg_decoding_is_close_to_pillow_and_scaled_decoding_to_full():
    data = encode(Image.fromarray(smooth(512, 640)), "JPEG", quality=95)
    full = decode(data)
    assert np.abs(to_array(full).astype(int) - np.asarray(Image.open(io.BytesIO(data)))).max() <= 2
    fast = decode(data, min_side=128)
    assert fast.shape == (3, 160, 128)
    assert (fit(fast, (64, 64)).int() - fit(full, (64, 64)).int()).abs().max() <= 2


def test_exif_rotation_is_applied():
    pixels = smooth(32, 48)
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate clockwise to display
    for kind in ("JPEG", "PNG"):
        shown = to_array(decode(encode(Image.fromarray(pixels), kind, exif=exif)))
        assert shown.shape == (32, 48, 3)
        assert np.abs(shown.astype(int) - np.rot90(pixels, -1).astype(int)).mean() < 4


def test_resize_is_within_one_level_of_pillow():
    pixels = np.random.default_rng(0).integers(0, 256, (200, 200, 3), np.uint8)
    expected = np.asarray(Image.fromarray(pixels).resize((64, 64), Image.Resampling.BICUBIC)).astype(int)
    ours = to_array(resize(torch.from_numpy(pixels).permute(2, 0, 1), (64, 64))).astype(int)
    assert np.abs(ours - expected).max() <= 1


def test_fit_takes_a_centre_crop():
    wide = torch.zeros(3, 40, 100, dtype=torch.uint8)
    wide[:, :, 30:70] = 200
    assert (fit(wide, (20, 20)) == 200).all()
    same = torch.randint(0, 256, (3, 64, 64), dtype=torch.uint8)
    assert fit(same, (64, 64)).data_ptr() == same.data_ptr()  # an image of the right size is not copied
    with pytest.raises(BadSample, match="40 pixels, fewer than 64"):
        fit(wide, (64, 64))
    assert fit(wide, (64, 64), max_enlargement=2).shape == (3, 64, 64)


def test_a_decompression_bomb_is_rejected_by_its_header():
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    for side in (14_000, 60_000):
        header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
        png = (
            b"\x89PNG\r\n\x1a\n"
            + chunk(b"IHDR", header)
            + chunk(b"IDAT", zlib.compress(b"\0" * 100))
            + chunk(b"IEND", b"")
        )
        with pytest.raises(BadSample, match=r"limit|bomb"):
            decode(png)
    jpeg = bytearray(encode(Image.new("RGB", (8, 8)), "JPEG"))
    start = jpeg.index(b"\xff\xc0")
    jpeg[start + 5 : start + 9] = struct.pack(">HH", 65_000, 65_000)
    with pytest.raises(BadSample, match=str(MAX_PIXELS)):
        decode(bytes(jpeg))


def test_damaged_bytes_are_bad_samples():
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))
    for kind in ("PNG", "JPEG", "WEBP"):
        data = encode(picture, kind)
        for broken in (b"", data[:10], data[: len(data) // 2], b"<html>" + data):
            with pytest.raises(BadSample):
                decode(broken)


@pytest.mark.parametrize("pictures, side, chosen", [
    (["1024.png", "256.png", "64.png", "txt"], 64, "64.png"),
    (["1024.png", "256.png", "64.png", "txt"], 65, "256.png"),
    (["1024.png", "256.png", "64.png", "txt"], 256, "256.png"),
    (["256.png", "64.png"], 1024, "256.png"),
    (["json", "jpg", "txt"], 64, "jpg"),
    (["64.png", "webp"], 256, "webp"),
    (["64.png", "webp"], 32, "64.png"),
])  # fmt: skip
def test_the_smallest_sufficient_image_is_chosen(pictures, side, chosen):
    assert choose_image(pictures, side) == chosen


def test_a_sample_without_an_image_is_a_bad_sample():
    with pytest.raises(BadSample, match="no image"):
        choose_image(["txt", "json", "thumb.png"], 64)


def test_crops_of_both_resolutions_show_the_same_region():
    high = torch.from_numpy(smooth(256)).permute(2, 0, 1)
    low = resize(high, 64)
    places = set()
    for seed in range(50):
        position = tuple(np.random.default_rng(seed).random(2))
        high_crop, low_crop = aligned_crop(high, low, 64, position)
        assert high_crop.shape == (3, 64, 64) and low_crop.shape == (3, 16, 16)
        reduced = F.interpolate(high_crop[None].float(), size=(16, 16), mode="area")[0]
        # A shift by one low-resolution pixel would change this image by up to 10 levels.
        assert (reduced - low_crop).abs().max() < 1.5
        places.add((int(low_crop[0, 0, 0]), int(low_crop[1, 0, 0])))
    assert len(places) > 30
    for position in ((0.0, 0.0), (0.999999, 0.999999)):
        assert aligned_crop(high, low, 64, position)[1].shape == (3, 16, 16)
    assert torch.equal(aligned_crop(high, None, 255, (0.7, 0.2))[0], high[:, 1:256, 0:255])


@pytest.mark.parametrize("caption, named", [
    ("a cat to the left of a dog", True),
    ("The RIGHT hand", True),
    ("leftmost, of three", True),
    ("a right-handed golfer", True),
    ("a lefthanded guitar", True),
    ("turn rightwards", True),
    ("a logo in the top-left corner", True),
    ("bottom_right", True),
    ("a sign at the upperleft", True),
    ("bright copyright upright playwright", False),
    ("a cleft in a rock, alright", False),
    ("a righteous man", False),
    ("", False),
])  # fmt: skip
def test_captions_that_mention_left_or_right(caption, named):
    assert mentions_left_or_right(caption) is named
