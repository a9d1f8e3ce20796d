"""`imagen upscale`: images that cannot be upsampled."""

import re

from damage import picture
from PIL import Image


def test_pictures_that_cannot_be_enlarged(made, mistake, tmp_path, monkeypatch):
    good = picture(tmp_path / "good.png")
    truncated, text = tmp_path / "cut.png", tmp_path / "text.png"
    truncated.write_bytes(good.read_bytes()[:2000])
    text.write_text("hello")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10_000)
    bomb = picture(tmp_path / "bomb.png", (200, 200))
    for cascade, pictures, message in (
        ("sr", [tmp_path / "none.png"], "none.png does not exist"),
        ("sr", [truncated], "cut.png is not a readable image"),
        ("sr", [good, text], "text.png is not a readable image"),
        ("sr", [tmp_path], "is a folder, not a file"),
        ("sr", [bomb], "bomb.png is not a readable image: Image size .* exceeds limit"),
        ("base", [good], "no super-resolution stage"),
    ):
        assert re.search(message, mistake("upscale", made / cascade, *pictures, "--out", tmp_path / "o"))
    assert "no base stage" in mistake("sample", made / "sr", "cat", "--out", tmp_path / "o")
    assert not (tmp_path / "o").exists()
