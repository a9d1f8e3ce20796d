"""List the supported image formats: Pillow's safe formats and those of installed plug-ins."""

from functools import lru_cache
from importlib.util import find_spec

from PIL import Image, features

# Other formats of Pillow are excluded: for EPS it would run Ghostscript, for example, and TGA has no signature.
_OF_PILLOW = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "PPM", "QOI", "AVIF", "JPEG2000")
_BUILT_WITH = {"AVIF": "avif", "JPEG2000": "jpg_2000", "WEBP": "webp"}  # format: feature that Pillow may lack


@lru_cache(maxsize=1)
def readable_formats() -> tuple[str, ...]:
    """Return Pillow's names of the supported formats, after loading the plug-ins of the extra `formats`."""
    Image.init()
    is_built = {name: features.check(feature) for name, feature in _BUILT_WITH.items()}
    found = [name for name in _OF_PILLOW if name in Image.OPEN and is_built.get(name, True)]
    if find_spec("pillow_heif"):
        from pillow_heif import register_heif_opener

        register_heif_opener()
        found.append("HEIF")
    if find_spec("pillow_jxl"):
        import pillow_jxl  # noqa: F401 -- registers itself

        found.append("JXL")
    return tuple(found)


def missing_format(data: bytes) -> str | None:
    """Return the format of `data` if its decoder is not installed; None for all other data."""
    kind = _format_of(data)
    return None if kind is None or kind in readable_formats() else kind


def _format_of(data: bytes) -> str | None:
    """Identify a format with an optional decoder by the first bytes of a file; None for all others."""
    if data[:2] == b"\xff\x0a" or data[:12] == b"\0\0\0\x0cJXL \r\n\x87\n":
        return "JXL"
    if data[:4] == b"\xff\x4f\xff\x51" or data[:12] == b"\0\0\0\x0cjP  \r\n\x87\n":
        return "JPEG2000"
    if data[4:8] == b"ftyp":
        brands = {data[i : i + 4] for i in range(8, min(int.from_bytes(data[:4], "big"), 64), 4)}
        if brands & {b"avif", b"avis"}:
            return "AVIF"
        if brands & {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"}:
            return "HEIF"
    return None
