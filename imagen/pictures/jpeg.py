"""Read the header of a JPEG: the segments before its first scan (ITU-T T.81, annex B)."""

import re
from collections.abc import Iterator

_EXIF, _ICC, _XMP = b"Exif\0\0", b"ICC_PROFILE\0", b"http://ns.adobe.com/x"  # .../xap/1.0/ and .../xmp/extension/
_APP1, _APP2, _SCAN, _END = 0xE1, 0xE2, 0xDA, 0xD9
_STANDALONE = (0x01, *range(0xD0, 0xD8))  # markers without a segment
_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")  # except the markers that occur inside a scan
# Some cameras leave a few bytes between the scan and the end marker. Many such bytes mean a damaged scan.
_HARMLESS = re.compile(r"Corrupt JPEG data: 1?\d extraneous bytes before marker 0xd9")


def segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Yield (marker, start, end) of the content of each segment before the first scan; stop at invalid data."""
    position = 2
    while position + 4 <= len(data) and data[position] == 0xFF:
        marker = data[position + 1]
        if marker == 0xFF:  # padding
            position += 1
        elif marker in _STANDALONE:
            position += 2
        elif marker in (_SCAN, _END):
            return
        else:
            end = position + 2 + int.from_bytes(data[position + 2 : position + 4], "big")
            yield marker, position + 4, end
            position = end


def scans(data: bytes) -> int:
    """Count the scans of the image. A progressive image has about ten, and decoding processes all pixels for each."""
    count, position = 0, 2
    while (found := _MARKER.search(data, position)) is not None:
        position, marker = found.end(), data[found.end() - 1]
        if marker == _END:
            break
        count += marker == _SCAN
        if marker not in _STANDALONE:
            position += int.from_bytes(data[position : position + 2], "big")
    return count


def may_have_orientation(data: bytes) -> bool:
    """Return whether a segment before the first scan may contain an orientation (EXIF or XMP)."""
    return any(
        marker == _APP1
        and (data.startswith(_EXIF, start) or (data.startswith(_XMP, start) and b"Orientation" in data[start:end]))
        for marker, start, end in segments(data)
    )


def icc_profile(data: bytes) -> bytes | None:
    """Join the parts of the ICC profile (ICC.1:2022, annex B.4); return None if there is none or a part is missing."""
    parts: dict[int, bytes] = {}
    count = 0
    for marker, start, end in segments(data):
        if marker == _APP2 and data.startswith(_ICC, start) and end - start > 14:
            number, count = data[start + 12], data[start + 13]
            parts[number] = data[start + 14 : end]
    if not parts or sorted(parts) != list(range(1, count + 1)):
        return None
    return b"".join(parts[number] for number in sorted(parts))


def is_damage(warning: str) -> bool:
    """Return whether a warning of libjpeg means that the decoder invented pixels."""
    return warning.startswith("Corrupt JPEG data") and not _HARMLESS.search(warning)
