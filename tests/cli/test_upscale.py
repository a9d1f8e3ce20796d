"""Test `imagen upscale` with images that cannot be upsampled."""

import re

from damage import write_noise_image
from PIL import Image


def test_images_that_cannot_be_upsampled_are_rejected(artifacts, error_of, tmp_path, monkeypatch):
    good = write_noise_image(tmp_path / "good.png")
    truncated, text = tmp_path / "cut.png", tmp_path / "text.png"
    truncated.write_bytes(good.read_bytes()[:2000])
    text.write_text("hello")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10_000)
    bomb = write_noise_image(tmp_path / "bomb.png", (200, 200))
    for cascade, pictures, message in (
        ("sr", [tmp_path / "none.png"], "none.png does not exist"),
        ("sr", [truncated], "cut.png is not a readable image"),
        ("sr", [good, text], "text.png is not a readable image"),
        ("sr", [tmp_path], "is a folder, not a file"),
        ("sr", [bomb], "bomb.png is not a readable image: Image size .* exceeds limit"),
        ("base", [good], "no super-resolution stage"),
    ):
        assert re.search(message, error_of("upscale", artifacts / cascade, *pictures, "--out", tmp_path / "o"))
    assert "no base stage" in error_of("sample", artifacts / "sr", "cat", "--out", tmp_path / "o")
    assert not (tmp_path / "o").exists()
