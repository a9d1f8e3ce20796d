"""Read the header of a JPEG: the segments before its scan (ITU-T T.81, annex B)."""

import re
from collections.abc import Iterator

_EXIF, _ICC, _XMP = b"Exif\0\0", b"ICC_PROFILE\0", b"http://ns.adobe.com/x"  # .../xap/1.0/ and .../xmp/extension/
_APP1, _APP2, _SCAN, _END = 0xE1, 0xE2, 0xDA, 0xD9
_ALONE = (0x01, *range(0xD0, 0xD8))  # markers without a segment
_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")  # none of those that are found inside a scan
# Bytes between scan and end that cameras leave; a scan that is damaged leaves many.
_HARMLESS = re.compile(r"Corrupt JPEG data: 1?\d extraneous bytes before marker 0xd9")


def segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Yield (marker, start, end) of every segment's content before the first scan; ends at what is no segment."""
    position = 2
    while position + 4 <= len(data) and data[position] == 0xFF:
        marker = data[position + 1]
        if marker == 0xFF:  # padding
            position += 1
        elif marker in _ALONE:
            position += 2
        elif marker in (_SCAN, _END):
            return
        else:
            end = position + 2 + int.from_bytes(data[position + 2 : position + 4], "big")
            yield marker, position + 4, end
            position = end


def scans(data: bytes) -> int:
    """How many scans the picture has; a progressive one has about ten, and each goes over all pixels again."""
    count, position = 0, 2
    while (found := _MARKER.search(data, position)) is not None:
        position, marker = found.end(), data[found.end() - 1]
        if marker == _END:
            break
        count += marker == _SCAN
        if marker not in _ALONE:
            position += int.from_bytes(data[position : position + 2], "big")
    return count


def may_be_turned(data: bytes) -> bool:
    """Whether some segment before the scan may say how the picture is to be turned (EXIF or XMP)."""
    return any(
        marker == _APP1
        and (data.startswith(_EXIF, start) or (data.startswith(_XMP, start) and b"Orientation" in data[start:end]))
        for marker, start, end in segments(data)
    )


def icc_profile(data: bytes) -> bytes | None:
    """Join the parts of the ICC profile (ICC.1:2022, annex B.4); None if there is none or a part is missing."""
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
    """Whether a warning of libjpeg means that pixels were made up."""
    return warning.startswith("Corrupt JPEG data") and not _HARMLESS.search(warning)
