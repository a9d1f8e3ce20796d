"""Check that each kind of defect has its own reason, and that good images and captions are unchanged."""

import io

import numpy as np
import pytest
import torch
from corpus import CAPTIONS, DEFECTS, GOOD, encoded, picture
from PIL import Image, ImageOps

from imagen.data.build.quality import REASONS, AcceptedRecord, Limits, RejectedRecord, check
from imagen.data.embed.sidecar import from_bf16_bits
from imagen.data.loading.transforms import decode
from imagen.data.sources.base import Record
from imagen.pictures import MAX_PIXELS


def record(image: bytes | None = None, caption: str | bytes | None = "a picture", **more: object) -> Record:
    image = encoded(picture(0), "PNG") if image is None else image
    return Record(key="k", origin="here", image=image, caption=caption, **more)


def rejection_reason(made: Record, limits: Limits | None = None) -> str:
    checked = check(made, limits or Limits())
    assert isinstance(checked, RejectedRecord), made.caption
    assert checked.reason in REASONS and checked.detail
    return checked.reason


def assert_accepted(made: Record, limits: Limits | None = None) -> AcceptedRecord:
    checked = check(made, limits or Limits())
    assert isinstance(checked, AcceptedRecord), checked
    return checked


def decode_with_pillow(data: bytes) -> np.ndarray:
    """Decode with Pillow to upright RGB on white, without our decoder."""
    image = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    if image.mode == "F":
        return np.repeat(np.rint(np.asarray(image) * 255).astype(np.uint8)[..., None], 3, 2)
    if image.mode.startswith("I"):
        return np.repeat((np.asarray(image).astype(np.int64) // 256).astype(np.uint8)[..., None], 3, 2)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return np.asarray(image.convert("RGB"))


@pytest.mark.parametrize("kind", GOOD)
def test_good_images_of_every_kind_are_unchanged(kind):
    _, make = GOOD[kind]
    data = make(5)
    checked = assert_accepted(record(data))
    true = {b"\xff\xd8": "jpg", b"\x89P": "png", b"RI": "webp"}.get(data[:2])
    assert checked.extension == (true or "png") and checked.converted == (true is None)
    if true is not None:
        assert checked.image == data
    difference = np.abs(decode(checked.image).permute(1, 2, 0).numpy().astype(int) - decode_with_pillow(data))
    assert difference.max() <= (2 if data[:2] == b"\xff\xd8" else 0)  # two builds of libjpeg round differently


@pytest.mark.parametrize("kind", [name for name, defect in DEFECTS.items() if defect[2] is not None])
def test_bad_images_are_rejected_with_their_reason(kind):
    wanted, _, make, _ = DEFECTS[kind]
    assert rejection_reason(record(make(5))) == wanted


@pytest.mark.parametrize("kind", [name for name, defect in DEFECTS.items() if defect[0] == "animation"])
def test_the_first_frame_of_an_animation_is_used_on_request(kind):
    data = DEFECTS[kind][2](5)
    checked = assert_accepted(record(data), Limits(first_frame=True))
    assert (checked.extension, checked.converted) == ("png", True)
    image = Image.open(io.BytesIO(data))
    assert not getattr(Image.open(io.BytesIO(checked.image)), "is_animated", False)
    assert np.array_equal(decode(checked.image).permute(1, 2, 0).numpy(), np.asarray(image.convert("RGB")))


def test_a_format_without_a_decoder_is_named(monkeypatch):
    monkeypatch.setattr("imagen.pictures.formats.readable_formats", lambda: ("JPEG", "PNG"))
    monkeypatch.setattr("imagen.pictures.decoding.readable_formats", lambda: ("JPEG", "PNG"))
    assert rejection_reason(record(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(100))) == "no decoder"
    assert rejection_reason(record(encoded(picture(0), "JPEG2000"))) == "no decoder"


def test_a_file_truncated_anywhere_is_rejected():
    for format in ("JPEG", "PNG", "WEBP"):
        data = encoded(picture(1), format)
        found = {
            rejection_reason(record(data[:length])) for length in range(12, len(data) - 8, max(len(data) // 60, 1))
        }
        assert found == {"truncated picture"}, format


def test_limits_are_inclusive():
    limits = Limits(min_side=64, max_aspect=2, max_pixels=64 * 128, max_caption=5)
    assert assert_accepted(record(encoded(picture(0, 64, 128), "PNG"), "12345"), limits)
    assert rejection_reason(record(encoded(picture(0, 63, 64), "PNG"), "1"), limits) == "too small"
    assert rejection_reason(record(encoded(picture(0, 129, 64), "PNG"), "1"), limits) == "too many pixels"
    assert rejection_reason(record(encoded(picture(0, 131, 65), "PNG"), "1"), Limits(max_aspect=2)) == "extreme aspect"
    assert rejection_reason(record(None, "123456"), limits) == "long caption"
    assert Limits().max_pixels == MAX_PIXELS


def test_a_decompression_bomb_is_rejected_before_decoding(monkeypatch):
    monkeypatch.setattr("imagen.data.build.quality.decode", lambda *_, **__: pytest.fail("decoded"))
    assert rejection_reason(record(DEFECTS["decompression bomb"][2](0))) == "too many pixels"
    assert rejection_reason(record(encoded(picture(0), "JPEG")), Limits(max_pixels=5000)) == "too many pixels"


def test_a_program_in_place_of_an_image_is_not_executed():
    postscript = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 100 100\n%%EndComments\nshowpage\n"
    assert rejection_reason(record(postscript)) == "not a picture"


def test_bad_captions_are_rejected_and_good_ones_cleaned():
    stored = [assert_accepted(record(None, make(3))).caption for make in CAPTIONS]
    assert stored[:3] == ["picture 3", "picture 3 behind a byte order mark", "Größe 3, 絵, \U0001f419"]
    assert stored[3] == "picture 3\non two lines,\twith a tab" and len(stored[4]) == 2000
    assert assert_accepted(record(None, "\ufeff as text ")).caption == "as text"
    for caption, wanted in [
        (None, "missing caption"),
        ("", "empty caption"),
        (b"\xa0", "not UTF-8"),
        ("\u00a0", "empty caption"),
        ("half \udcff", "not UTF-8"),
        ("esc \x1b[31m", "control characters"),
        ("mojibake \x92", "control characters"),
    ]:
        assert rejection_reason(record(None, caption)) == wanted, repr(caption)


WITH_TEXT = Limits(max_tokens=4, embedding_width=8)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.float64])
def test_embeddings_are_stored_in_bfloat16(dtype):
    embedding = np.random.default_rng(0).normal(size=(3, 8)).astype(dtype)
    for caption in ("said", "", None):  # an embedding needs no caption
        checked = assert_accepted(record(None, caption, embedding=embedding), WITH_TEXT)
        assert checked.caption == (caption or "")
        expected = torch.from_numpy(embedding.astype(np.float32)).bfloat16().float()
        assert torch.equal(from_bf16_bits(checked.bits), expected)


@pytest.mark.parametrize(
    "embedding, wanted",
    [
        (None, "missing embedding"),
        (np.zeros((0, 8)), "empty embedding"),
        (np.zeros((5, 8)), "long embedding"),
        (np.zeros((2, 7)), "embedding width"),
        (np.zeros(8), "embedding width"),
        (np.zeros((2, 8), "U1"), "embedding width"),
        (np.full((2, 8), np.nan), "embedding not finite"),
        (np.diag([0.0] * 7 + [np.inf])[4:], "embedding not finite"),
        (np.full((2, 8), 3.4e38, np.float32), "embedding not finite"),  # finite, but infinite in bfloat16
        (np.full((2, 8), 1e300), "embedding not finite"),
    ],
)
def test_bad_embeddings_are_rejected_with_their_reason(embedding, wanted):
    assert rejection_reason(record(embedding=embedding), WITH_TEXT) == wanted


def test_a_problem_of_the_source_is_the_reason():
    checked = check(record(problem=("missing file", "a.jpg does not exist")), Limits())
    assert checked == RejectedRecord("missing file", "a.jpg does not exist")


def test_the_hash_covers_upright_pixels_not_bytes():
    png, bmp = (assert_accepted(record(encoded(picture(3), format))) for format in ("PNG", "BMP"))
    assert png.pixel_hash == bmp.pixel_hash != assert_accepted(record(encoded(picture(4), "PNG"))).pixel_hash
    plain = Image.new("RGB", (128, 64), "red")
    turned = assert_accepted(record(encoded(plain.transpose(Image.Transpose.ROTATE_90), "PNG")))
    # The same pixel bytes in another shape.
    assert assert_accepted(record(encoded(plain, "PNG"))).pixel_hash != turned.pixel_hash
