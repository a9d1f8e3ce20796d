"""Test decoding: every way of storing an image gives the same pixels."""

import io
import struct
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms, ImageOps, features

from imagen.errors import UserError
from imagen.pictures import BadPicture, UnknownRange, decode, missing_format, read_picture, readable_formats
from imagen.pictures.png import SIGNATURE

ORIENTATIONS = range(1, 9)  # of EXIF


def smooth(height: int = 96, width: int = 128) -> np.ndarray:
    """Return a smooth image with four different corners, which reveals rotations and exchanged channels."""
    y, x = np.linspace(0, 1, height)[:, None], np.linspace(0, 1, width)[None]
    return np.stack([40 + 150 * x + 0 * y, 60 + 140 * y + 0 * x, 200 - 90 * x - 60 * y], -1).round().astype(np.uint8)


def encode(image: Image.Image | np.ndarray, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(file, kind, **options)
    return file.getvalue()


def orientation_exif(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def stored(upright: np.ndarray, orientation: int) -> np.ndarray:
    """Return the stored pixels from which Pillow restores `upright` according to `orientation`."""
    for candidate in Image.Transpose:
        image = Image.fromarray(upright).transpose(candidate)
        image.getexif()[0x0112] = orientation
        if np.array_equal(np.asarray(ImageOps.exif_transpose(image)), upright):
            return np.asarray(image)
    return upright


def segment(marker: int, body: bytes) -> bytes:
    return bytes([0xFF, marker]) + struct.pack(">H", len(body) + 2) + body


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def difference(data: bytes, expected: np.ndarray) -> float:
    """Return the mean absolute difference in levels; infinite if the sizes differ."""
    found = decode(data)
    assert found.dtype == np.uint8 and found.flags.c_contiguous
    return float("inf") if found.shape != expected.shape else np.abs(found.astype(int) - expected).mean()


@pytest.mark.parametrize("orientation", ORIENTATIONS)
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
def test_images_are_decoded_upright(kind, orientation):
    if kind == "AVIF" and kind not in readable_formats():
        pytest.skip("this Pillow has no AVIF")
    pixels = smooth()
    data = encode(stored(pixels, orientation), kind, exif=orientation_exif(orientation))
    assert difference(data, pixels) < (4 if kind in ("JPEG", "WEBP", "AVIF") else 0.01)
    if kind == "TIFF":
        data = encode(stored(pixels, orientation), kind, exif=orientation_exif(orientation), compression="tiff_lzw")
        assert difference(data, pixels) < 0.01


@pytest.mark.parametrize(
    "before",
    [
        b"",
        segment(0xE2, b"ICC_PROFILE\0\1\1" + bytes(3000)),
        segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0" + b" " * 60_000),
        segment(0xFE, b"c" * 1500) * 3,
        segment(0xED, b"Photoshop 3.0\0" + bytes(65_000)),
        b"\xff" * 7,  # padding of a marker
    ],
    ids=["first", "ICC", "XMP", "comments", "Photoshop", "padding"],
)
def test_orientation_is_found_after_any_segment(before):
    pixels = smooth()
    data = encode(stored(pixels, 6), "JPEG", quality=95)
    data = data[:2] + before + segment(0xE1, orientation_exif(6).tobytes()) + data[2:]
    assert difference(data, pixels) < 2
    small = decode(data, min_side=24)  # decoded at a fraction of the size, and also upright
    assert small.shape == (24, 32, 3)
    assert (
        np.abs(small.astype(int) - np.asarray(Image.fromarray(pixels).resize((32, 24), Image.Resampling.BOX))).mean()
        < 2
    )


def test_orientation_in_xmp_only():
    pixels = smooth()
    data = encode(stored(pixels, 8), "JPEG", quality=95)
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="8"/></x:xmpmeta>'
    xmp = b"http://ns.adobe.com/xap/1.0/\0" + xmp
    assert difference(data[:2] + segment(0xE1, xmp) + data[2:], pixels) < 2


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize(
    "xmp", [b"<r tiff:Orientation='6'/>", b'<r tiff:Orientation = "6"/>', b"<tiff:Orientation> 6 </tiff:Orientation>"]
)
def test_orientation_in_any_spelling_of_xmp(kind, xmp):
    pixels = stored(smooth(), 6)
    if kind == "PNG":
        data = encode(pixels, "PNG")
        data = data[:33] + chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp) + data[33:]
    else:
        data = encode(pixels, kind, quality=95, xmp=xmp)
    assert difference(data, smooth()) < 2


def test_broken_exif_is_ignored():
    pixels = smooth()
    data = encode(pixels, "JPEG", quality=95)
    for body in (
        b"Exif\0\0",
        b"Exif\0\0garbage!",
        b"Exif\0\0II*\0\xff\xff\xff\xff",
        b"Exif\0\0MM\0*\0\0\0\x08\xff\xff",
    ):
        assert difference(data[:2] + segment(0xE1, body) + data[2:], pixels) < 2
    for orientation in (0, 9, 65535):
        assert difference(encode(pixels, "PNG", exif=orientation_exif(orientation)), pixels) == 0


# Profiles are generated here, so that no licensed ones are needed. Columns: red, green and blue in XYZ, adapted to D50.
PRIMARIES = {
    "red and green exchanged": ((0.3851, 0.7169, 0.0971), (0.4360, 0.2225, 0.0139), (0.1431, 0.0606, 0.7141)),
    "Adobe RGB": ((0.60974, 0.31111, 0.01947), (0.20528, 0.62567, 0.06087), (0.14919, 0.06322, 0.74457)),
    "Display P3": ((0.51512, 0.24120, -0.00105), (0.29198, 0.69225, 0.04189), (0.15710, 0.06657, 0.78407)),
    "ProPhoto": ((0.79767, 0.28804, 0.0), (0.13519, 0.71188, 0.0), (0.03135, 0.00009, 0.82490)),
}


def profile(space: bytes, tags: list[tuple[bytes, bytes]]) -> bytes:
    """Return an ICC profile of version 2 (ICC.1:2001-04, 6.1)."""
    text = b"desc\0\0\0\0" + struct.pack(">I", 5) + b"test\0" + bytes(79)
    tags = [(b"desc", text), (b"cprt", b"text\0\0\0\0none\0\0\0\0"), (b"wtpt", xyz((0.9642, 1, 0.8249))), *tags]
    table, body, start = b"", b"", 132 + 12 * len(tags)
    for name, value in tags:
        table += name + struct.pack(">II", start + len(body), len(value))
        body += value + bytes(-len(value) % 4)
    header = struct.pack(">I4sI4s4s4s", start + len(body), b"none", 0x02400000, b"mntr", space, b"XYZ ")
    header += struct.pack(">6H", 2024, 1, 1, 0, 0, 0) + b"acsp" + bytes(28) + xyz((0.9642, 1, 0.8249))[8:] + bytes(48)
    return header + struct.pack(">I", len(tags)) + table + body


def xyz(values: tuple[float, ...]) -> bytes:
    return b"XYZ \0\0\0\0" + b"".join(struct.pack(">i", round(value * 65536)) for value in values)


def gamma(exponent: float) -> bytes:
    return b"curv\0\0\0\0" + struct.pack(">IHH", 1, round(exponent * 256), 0)


def rgb_profile(primaries: tuple[tuple[float, ...], ...], exponent: float = 2.2) -> bytes:
    names = (b"r", b"g", b"b")
    colours = [(name + b"XYZ", xyz(column)) for name, column in zip(names, primaries, strict=True)]
    return profile(b"RGB ", [*colours, *((name + b"TRC", gamma(exponent)) for name in names)])


def in_float64(rgb_HWC: np.ndarray, primaries: tuple[tuple[float, ...], ...], exponent: float = 2.2) -> np.ndarray:
    """Convert pixels to sRGB by the equations (IEC 61966-2-1, adapted to D50)."""
    srgb = np.array([[0.43607, 0.38515, 0.14307], [0.22249, 0.71687, 0.06061], [0.01392, 0.09708, 0.71410]])
    linear = (rgb_HWC / 255) ** exponent @ np.array(primaries) @ np.linalg.inv(srgb).T
    linear = linear.clip(0, 1)
    return 255 * np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


@pytest.mark.parametrize("name", PRIMARIES)
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_colour_profiles_are_converted_to_srgb(kind, name):
    icc, pixels = rgb_profile(PRIMARIES[name]), smooth()
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encode(pixels, kind, icc_profile=icc, **options)
    as_stored = np.asarray(Image.open(io.BytesIO(data)))  # without the profile
    assert np.abs(as_stored - in_float64(as_stored, PRIMARIES[name])).mean() > 2, "the profile changes something"
    assert difference(data, in_float64(as_stored, PRIMARIES[name])) < 1


def test_profile_in_several_segments_is_joined():
    icc = rgb_profile(PRIMARIES["red and green exchanged"])
    plain = encode(smooth(), "JPEG", quality=95)
    parts = [segment(0xE2, b"ICC_PROFILE\0" + bytes([i, 3]) + part) for i, part in ((2, icc[200:400]), (1, icc[:200]))]
    last = segment(0xE2, b"ICC_PROFILE\0\3\3" + icc[400:])
    exchanged = in_float64(decode(plain), PRIMARIES["red and green exchanged"])
    assert difference(plain[:2] + b"".join([*parts, last]) + plain[2:], exchanged) < 1
    assert difference(plain[:2] + b"".join(parts) + plain[2:], decode(plain)) == 0, "a part is missing"


def test_srgb_and_unusable_profiles_change_nothing():
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    grey = profile(b"GRAY", [(b"kTRC", gamma(1.0))])  # for another colour space
    for icc in (srgb, grey, b"", b"no profile", srgb[:200], bytes(4000)):
        assert difference(encode(smooth(), "PNG", icc_profile=icc), smooth()) == 0
        jpeg = encode(smooth(), "JPEG", quality=95)
        assert difference(encode(smooth(), "JPEG", quality=95, icc_profile=icc), decode(jpeg)) == 0


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_grey_profiles(kind):
    grey = smooth()[..., 0]
    data = encode(grey, kind, icc_profile=profile(b"GRAY", [(b"kTRC", gamma(1.0))]))
    linear = np.asarray(Image.open(io.BytesIO(data))) / 255
    expected = 255 * np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    assert difference(data, np.repeat(expected[..., None], 3, 2)) < 1


def test_grey_profiles_with_transparency():
    grey = smooth()[..., 0]
    icc = profile(b"GRAY", [(b"kTRC", gamma(1.0))])
    opaque = decode(encode(grey, "PNG", icc_profile=icc))
    assert opaque[0, 0, 0] > grey[0, 0] + 40, "the profile changes something"
    alpha = np.full_like(grey, 255)
    alpha[:48] = 0
    found = decode(encode(Image.merge("LA", [*map(Image.fromarray, (grey, alpha))]), "PNG", icc_profile=icc))
    assert (found[:48] == 255).all() and (found[48:] == opaque[48:]).all()
    grey[0, 0] = 7  # one grey level is transparent
    found = decode(encode(grey, "PNG", icc_profile=icc, transparency=7))
    assert (found[0, 0] == 255).all() and (found[1:] == opaque[1:]).all()


@pytest.mark.parametrize("method", [2, 3])
def test_profiles_in_jpeg_2000(method):
    if "JPEG2000" not in readable_formats():
        pytest.skip("Pillow was built without JPEG 2000")
    primaries = PRIMARIES["red and green exchanged"]
    box = lambda kind, body: struct.pack(">I4s", 8 + len(body), kind) + body  # noqa: E731
    data = encode(smooth(), "JPEG2000")
    colour = box(b"colr", b"\1\0\0\0\0\0\x10")  # sRGB, in Pillow's encoding
    assert data.count(colour) == 1
    position = data.index(b"jp2h")
    length = int.from_bytes(data[position - 4 : position], "big")
    header = data[position - 4 : position - 4 + length]
    changed = header[8:].replace(colour, box(b"colr", bytes([method, 0, 0]) + rgb_profile(primaries)))
    assert difference(data, smooth()) == 0
    data = data[: position - 4] + box(b"jp2h", changed) + data[position - 4 + length :]
    assert difference(data, in_float64(smooth(), primaries)) < 1
    for cut in range(0, position + length, 7):  # truncated boxes
        with pytest.raises(BadPicture):
            decode(data[:cut])


def test_transparent_image_with_a_profile():
    primaries = PRIMARIES["red and green exchanged"]
    rgba = np.dstack([smooth(), np.full((96, 128), 255, np.uint8)])
    rgba[:48, :, 3] = 0
    found = decode(encode(rgba, "PNG", icc_profile=rgb_profile(primaries)))
    assert (found[:48] == 255).all()
    assert np.abs(found[48:] - in_float64(rgba[48:, :, :3], primaries)).mean() < 1


def test_cmyk():
    plain = Image.fromarray(smooth()).convert("CMYK")
    for kind in ("JPEG", "TIFF"):
        data = encode(plain, kind)
        assert difference(data, np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))) == 0
        assert difference(data, smooth()) < 3


def test_lab():
    lab = ImageCms.profileToProfile(
        Image.fromarray(smooth()), ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), outputMode="LAB"
    )
    assert difference(encode(lab, "TIFF"), smooth()) < 2


@pytest.mark.parametrize(
    "name, image",
    [
        ("a.png", lambda grey: (grey * 257).astype(np.uint16)),
        ("a.tif", lambda grey: (grey * 257).astype(np.uint16)),
        ("a.tif", lambda grey: (grey * 257).astype(">u2")),
        ("a.tif", lambda grey: (grey * 257).astype(np.int32)),
        ("a.tif", lambda grey: (grey / 255).astype(np.float32)),
        ("a.jp2", lambda grey: (grey * 257).astype(np.uint16)),
        ("a.pgm", lambda grey: (grey * 257).astype(np.uint16)),
    ],
    ids=["png16", "tiff16", "tiff16 big-endian", "tiff32", "tiff float", "jpeg2000", "pgm16"],
)
def test_deep_grey(tmp_path, name, image):
    if name.endswith("jp2") and not features.check("jpg_2000"):
        pytest.skip("this Pillow has no JPEG 2000")
    grey = smooth()[..., 0].astype(int)
    Image.fromarray(image(grey)).save(tmp_path / name)
    found = np.asarray(read_picture(tmp_path / name)).astype(int)
    assert np.abs(found - grey[..., None]).max() <= 1


@pytest.mark.parametrize(
    "values",
    [
        *(np.float32([pair]) for pair in ((0, 1.5), (-0.1, 1), (np.nan, 0), (0, 255))),
        *(np.int32([pair]) for pair in ((-1, 300), (0, 70_000), (0, 255))),
    ],
)
def test_unsupported_range_is_an_error(values):
    with pytest.raises(UnknownRange, match=r"pixels from .*: supported are"):
        decode(encode(np.repeat(values, 4, 0), "TIFF"))


def test_12_bit_tiff():
    """Two 12-bit samples take three bytes (TIFF 6.0); 2048 of 4095 is mid-grey."""
    fields = {256: 4, 257: 2, 258: 12, 259: 1, 262: 1, 273: 8 + 2 + 12 * 9 + 4, 277: 1, 278: 2, 279: 12}
    table = b"".join(struct.pack("<HHIHH", tag, 3, 1, value, 0) for tag, value in fields.items())
    header = b"II*\0" + struct.pack("<IH", 8, len(fields)) + table + bytes(4)
    found = decode(header + bytes.fromhex("000 800 fff 400".replace(" ", "")) * 2)
    assert found[..., 0].tolist() == [[0, 128, 255, 64]] * 2


def test_16_bit_images_with_transparency_or_inverted_levels():
    """Decode a PNG with a transparent level, and a TIFF in which 0 is white."""
    grey = np.repeat((np.arange(256) * 257).astype(np.uint16)[None], 8, 0)
    file = encode(grey, "PNG")
    file = file[:33] + chunk(b"tRNS", struct.pack(">H", 257 * 7)) + file[33:]
    found = decode(file)[0, :, 0]
    assert found[7] == 255 and found[6] == 6 and found[8] == 8
    white_zero = encode(grey, "TIFF", tiffinfo={262: 0})
    assert np.abs(decode(white_zero)[0, :, 0].astype(int) - np.arange(255, -1, -1)).max() <= 1


@pytest.mark.parametrize(
    ("bits", "colour", "row", "key", "expected"),
    [
        (2, 0, b"\x40", struct.pack(">H", 1), [255, 0]),
        (4, 0, b"\x05", struct.pack(">H", 5), [0, 255]),
        (16, 2, struct.pack(">6H", *[0x1234] * 3, *[0x3400] * 3), struct.pack(">3H", *[0x1234] * 3), [255, 0x34]),
        (8, 2, bytes([5] * 3 + [9] * 3), struct.pack(">3H", 5, 5, 5), [255, 9]),
    ],
)
def test_a_transparent_colour_of_any_depth(bits, colour, row, key, expected):
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 2, 1, bits, colour, 0, 0, 0))
    image = header + chunk(b"tRNS", key) + chunk(b"IDAT", zlib.compress(b"\0" + row)) + chunk(b"IEND", b"")
    assert decode(SIGNATURE + image)[0, :, 0].tolist() == expected


def test_long_text_chunks_are_ignored():
    png = encode(smooth(), "PNG")
    for text in (
        chunk(b"tEXt", b"workflow\0" + b"x" * 3_000_000),
        chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(2**26))),
    ):
        assert difference(png[:33] + text + png[33:], smooth()) == 0
        assert difference(png[:-12] + text + png[-12:], smooth()) == 0


def test_long_profile_is_applied():
    icc = rgb_profile(PRIMARIES["red and green exchanged"])
    long = struct.pack(">I", len(icc) + 2_000_000) + icc[4:] + bytes(2_000_000)
    expected = in_float64(smooth(), PRIMARIES["red and green exchanged"])
    assert difference(encode(smooth(), "PNG", icc_profile=long), expected) < 1


def test_strict_decoding_checks_png_checksums():
    png = bytearray(encode(smooth(), "PNG"))
    png[-14] ^= 1  # in the checksum of the last IDAT chunk
    with pytest.raises(BadPicture, match="checksum of chunk IDAT"):
        decode(bytes(png), strict=True)
    with pytest.raises(BadPicture, match="IEND"):
        decode(encode(smooth(), "PNG")[:-12], strict=True)


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF"])
def test_first_frame_is_decoded(kind):
    first, second = Image.fromarray(smooth()).quantize(32), Image.new("P", (128, 96))
    first, second = (image.convert("RGB") for image in (first, second))
    data = encode(first, kind, save_all=True, append_images=[second], **({"lossless": True} if kind == "WEBP" else {}))
    assert difference(data, np.asarray(first)) < (3 if kind == "GIF" else 0.01)


def damaged(data: bytes) -> list[bytes]:
    """Return copies of `data` with one byte changed at many positions, and truncated copies."""
    step = max(len(data) // 200, 1)
    changed = [data[:i] + bytes([value]) + data[i + 1 :] for i in range(0, len(data), step) for value in (0, 0xFF)]
    return changed + [data[:length] for length in range(0, len(data), step)]


@pytest.mark.parametrize("kind", sorted(readable_formats()))
def test_damage_is_reported_as_user_error(kind, tmp_path):
    try:
        data = encode(smooth(24, 32), {"DIB": "BMP", "HEIF": "HEIF"}.get(kind, kind))
    except (OSError, KeyError):
        pytest.skip(f"this Pillow does not write {kind}")
    unread = 0
    for number, broken in enumerate(damaged(data)):
        file = tmp_path / str(number)  # not one file for all: some file systems flush a file that is overwritten
        file.write_bytes(broken)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                assert read_picture(file).mode == "RGB"
            except UserError as error:
                unread += 1
                assert "is not a readable image" in str(error) or "needs a decoder" in str(error)
    assert unread > 10


def test_error_names_formats_without_a_decoder(monkeypatch, tmp_path):
    monkeypatch.setattr("imagen.pictures.formats.readable_formats", lambda: ("JPEG", "PNG"))
    for data, kind in [
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "HEIF"),
        (b"\0\0\0\x1cftypavif\0\0\0\0avifmif1miaf", "AVIF"),
        (b"\xff\x0a\0\0", "JXL"),
        (b"\0\0\0\x0cJXL \r\n\x87\n", "JXL"),
        (b"\0\0\0\x0cjP  \r\n\x87\n", "JPEG2000"),
    ]:
        assert missing_format(data) == kind
        (tmp_path / "x").write_bytes(data)
        with pytest.raises(UserError, match=rf"{kind}, which needs a decoder.*\[formats\]"):
            read_picture(tmp_path / "x")
    assert missing_format(SIGNATURE) is None and missing_format(b"\0\0\0\x14ftypisom") is None


@pytest.mark.parametrize("kind, package", [("HEIF", "pillow_heif"), ("JXL", "pillow_jxl")])
def test_plug_ins(kind, package, tmp_path):
    pytest.importorskip(package)
    assert kind in readable_formats()
    assert (
        difference(encode(smooth(), kind, **({"lossless": True} if kind == "JXL" else {"quality": 95})), smooth()) < 3
    )
