"""What is good enough to train on: every record is checked once, and a rejected one gets exactly one reason."""

import hashlib
import io
import re
import unicodedata
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError

from imagen import distribution
from imagen.data.embed.sidecar import to_bf16_bits
from imagen.data.sources.base import Record
from imagen.pictures import MAX_PIXELS, BadPicture, UnknownRange, decode, missing_format
from imagen.pictures.decoding import read_header

# Reason: what it means. Sources give the first group, `check` the second, `imagen.data.build.dataset` the third.
REASONS = {
    "missing file": "a file that the source names is not there",
    "unreadable file": "a file that the source names cannot be read",
    "broken row": "the source's row, line or tar member is not what its format says",
    "broken tar": "the tar ends, or is damaged, behind its last whole sample",
    "bad embedding": "the embedding of the source cannot be read",
    "bad base64": "the picture's text is not base64",
    "missing image": "the record has no picture",
    "not a picture": "the bytes are of no format that is read (jpeg, png, webp, gif, bmp, tiff, avif, jpeg 2000, ...)",
    "no decoder": "HEIC, JPEG XL or another format whose decoder is not installed",
    "truncated picture": "the file ends before the picture does",
    "damaged picture": "the decoder, or a checksum in the file, says that pixels are wrong",
    "too many pixels": "a decompression bomb: the header says more pixels than the limit; none was decoded",
    "too small": "the shorter side has fewer pixels than --min-side",
    "extreme aspect": "the longer side is more than --max-aspect times the shorter one",
    "animation": "several frames or pages (GIF, APNG, animated WebP, TIFF); --first-frame takes the first",
    "pixel type": "32-bit integers outside of 16-bit values, or floats outside of 0 to 1: which is white is not known",
    "missing caption": "the record has no caption",
    "empty caption": "the caption is empty or white space",
    "not UTF-8": "the caption's bytes are not UTF-8, or were replaced by U+FFFD before",
    "control characters": "the caption holds control characters other than tab and line end",
    "long caption": "the caption has more characters than --max-caption",
    "missing embedding": "the record has no embedding though --encoder says that the source brings them",
    "empty embedding": "the embedding has no tokens",
    "embedding width": "the embedding is not [tokens, width] with the width of the others",
    "long embedding": "the embedding has more tokens than --max-tokens",
    "embedding not finite": "the embedding holds NaN or infinity, in bfloat16 at the latest",
    "repeated key": "an earlier record of the same part of the source has this key",
    "second picture": "the sample of a tar has another picture, which is taken",
    "caption of several": "one of several captions of a picture is not good; the picture is taken with the others",
    "format": "bmp, gif, tiff, avif or the like in a tar that is used in place (--copy converts it)",
    "duplicate": "an earlier sample has the same pixels (--keep-duplicates keeps it)",
}
# Reason: the option of a build that keeps such records, or what to do.
REMEDIES = {
    "no decoder": f"run: pip install '{distribution.NAME}[formats]'",
    "animation": "give --first-frame",
    "too small": "give a smaller --min-side",
    "extreme aspect": "give a larger --max-aspect",
    "long caption": "give a larger --max-caption",
    "long embedding": "give a larger --max-tokens",
    "missing embedding": "leave --encoder out and encode afterwards",
    "duplicate": "give --keep-duplicates, or put rows with one picture next to each other",
    "format": "give --copy --out",
    "repeated key": "give each sample of a tar a name of its own",
}
# The same of one kind of source.
_REMEDIES_OF = {
    "table": {
        "missing caption": "name the column of captions with --caption-column",
        "missing file": "see that paths begin at the table's folder, and name their column with --image-column",
        "bad base64": "name the column of pictures with --image-column",
    },
    "folder": {
        "missing caption": "put captions beside the pictures (KEY.txt), or give --caption-from folder, or name",
        "missing file": "put pictures beside the captions",
    },
    "tars in place": {"missing caption": "give --copy --out, which takes captions of .json and .caption, too"},
}
BESIDE_SAMPLES = ("second picture", "caption of several")  # reasons of what is no sample by itself
_KEPT_AS = {"JPEG": "jpg", "MPO": "jpg", "PNG": "png", "WEBP": "webp"}  # what training reads; MPO: jpeg and a preview
_MAGIC = (b"\xff\xd8", b"\x89PNG", b"GIF8", b"BM", b"II*\0", b"MM\0*")


def remedy(reason: str, kind: str) -> str | None:
    """What to do about records with this reason. kind: of the source; "table", "folder" or "tars in place"."""
    return _REMEDIES_OF.get(kind, {}).get(reason) or REMEDIES.get(reason)


@dataclass(frozen=True, kw_only=True)
class Limits:
    min_side: int = 64  # pixels of the shorter side
    max_aspect: float = 4.0  # longer side / shorter side
    max_pixels: int = MAX_PIXELS
    first_frame: bool = False  # take the first frame of several
    max_caption: int = 2000  # characters
    max_tokens: int | None = None  # of an embedding; None: the source brings none
    embedding_width: int | None = None


@dataclass(frozen=True, kw_only=True)
class Checked:
    """A good record, as it is stored."""

    image: bytes  # those of the record, or a PNG of the same pixels where training cannot read the format
    extension: str  # of the true format: "jpg", "png" or "webp"
    converted: bool  # whether `image` is not the record's
    captions: tuple[str, ...]  # one at least, stripped, no two alike
    left_out: "tuple[Rejected, ...]"  # captions that are not good, beside others that are
    bits: np.ndarray | None  # uint16 [L, D]: the embedding in bfloat16
    pixel_hash: int  # 64 bits that tell the decoded, upright RGB pixels apart

    @property
    def caption(self) -> str:
        """The first one."""
        return self.captions[0]


@dataclass(frozen=True)
class Rejected:
    reason: str  # one of REASONS
    detail: str


class _Bad(Exception):
    """(reason, detail)"""


def check(record: Record, limits: Limits) -> Checked | Rejected:
    """Whether a record can be trained on. What is cheap to see comes first; the picture is decoded once, in full."""
    try:
        if record.problem is not None:
            raise _Bad(*record.problem)
        if not record.image:
            raise _Bad("missing image", "no bytes")
        captions, left_out = _captions(record, limits)
        bits = _embedding(record.embedding, limits)
        if bits is not None and len(captions) > 1:
            raise _Bad("bad embedding", f"one embedding for {len(captions)} captions")
        return _picture(record.image, captions, left_out, bits, limits)
    except _Bad as bad:
        return Rejected(*bad.args)


def _captions(record: Record, limits: Limits) -> tuple[tuple[str, ...], tuple[Rejected, ...]]:
    """The good captions, and why others are not; _Bad with the first one's reason if there is none."""
    if not record.further:
        return (_caption(record, record.caption, limits),), ()
    good: dict[str, None] = {}
    bad: list[Rejected] = []
    texts = (record.caption, *record.further)
    for number, text in enumerate(texts, 1):
        try:
            good[_caption(record, text, limits)] = None
        except _Bad as error:
            reason, detail = error.args
            bad.append(Rejected(reason, f"caption {number} of {len(texts)}: {detail}"))
    if not good:
        raise _Bad(bad[0].reason, bad[0].detail)
    return tuple(good), tuple(bad)


def _caption(record: Record, text: str | bytes | None, limits: Limits) -> str:
    if isinstance(text, bytes):
        try:
            text = text.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise _Bad("not UTF-8", f"byte {error.object[error.start]:#04x} at {error.start}") from None
    if text is None:
        if record.embedding is not None:  # the text was encoded already, and not kept
            return ""
        raise _Bad("missing caption", "none")
    text = text.removeprefix("\ufeff").strip()
    if not text and record.embedding is None:
        raise _Bad("empty caption", "nothing but white space")
    for place, character in enumerate(text):
        if character == "\ufffd" or "\ud800" <= character <= "\udfff":  # surrogates: bytes that were no UTF-8
            raise _Bad("not UTF-8", f"{character!a} at character {place}")
        if unicodedata.category(character) == "Cc" and character not in "\t\n\r":
            raise _Bad("control characters", f"{character!a} at character {place}")
    if len(text) > limits.max_caption:
        raise _Bad("long caption", f"{len(text)} characters, the limit is {limits.max_caption}")
    return text


def _embedding(embedding: np.ndarray | None, limits: Limits) -> np.ndarray | None:
    if limits.max_tokens is None:
        return None
    if embedding is None:
        raise _Bad("missing embedding", "none")
    if embedding.ndim != 2 or embedding.shape[1] != limits.embedding_width or embedding.dtype.kind not in "fiu":
        raise _Bad("embedding width", f"{embedding.dtype} {list(embedding.shape)}, not [L, {limits.embedding_width}]")
    if len(embedding) == 0:
        raise _Bad("empty embedding", "no tokens")
    if len(embedding) > limits.max_tokens:
        raise _Bad("long embedding", f"{len(embedding)} tokens, the limit is {limits.max_tokens}")
    with np.errstate(over="ignore"):
        tokens = torch.from_numpy(embedding.astype(np.float32)).to(torch.bfloat16)
    if not torch.isfinite(tokens).all():
        row, column = (~torch.isfinite(tokens)).nonzero()[0].tolist()
        raise _Bad("embedding not finite", f"{embedding[row, column]} at token {row}, number {column}")
    return to_bf16_bits(tokens)


def _picture(
    data: bytes, captions: tuple[str, ...], left_out: tuple[Rejected, ...], bits: np.ndarray | None, limits: Limits
) -> Checked:
    kind, has_frames = _header(data, limits)
    try:
        pixels_HWC = decode(data, strict=True)
    except UnknownRange as error:
        raise _Bad("pixel type", str(error)) from None
    except BadPicture as error:
        raise _broken(data, str(error)) from None
    digest = hashlib.blake2b(repr(pixels_HWC.shape).encode(), digest_size=8)
    digest.update(pixels_HWC.data)
    converted = kind not in _KEPT_AS or has_frames
    if converted:
        file = io.BytesIO()
        Image.fromarray(pixels_HWC).save(file, "PNG")
        data = file.getvalue()
    return Checked(
        image=data,
        extension="png" if converted else _KEPT_AS[kind],
        converted=converted,
        captions=captions,
        left_out=left_out,
        bits=bits,
        pixel_hash=int.from_bytes(digest.digest(), "little"),
    )


def _header(data: bytes, limits: Limits) -> tuple[str, bool]:
    """Check all that can be known without decoding pixels; return the format and whether there are several frames."""
    try:
        with read_header(data) as image:
            (width, height), kind = image.size, str(image.format)
            has_frames = kind != "MPO" and getattr(image, "is_animated", False)
    except Image.DecompressionBombError as error:
        pixels = re.search(r"\d+", str(error))
        raise _Bad("too many pixels", f"{pixels and pixels[0]} pixels, the limit is {limits.max_pixels}") from None
    except UnidentifiedImageError:  # its text shows a memory address
        if missing := missing_format(data):
            raise _Bad("no decoder", missing) from None
        if not _has_magic(data):
            raise _Bad("not a picture", f"begins {data[:8]!r}") from None
        raise _broken(data, "cannot be opened") from None
    except Exception as error:  # Pillow raises almost anything on hostile bytes
        raise _broken(data, f"{type(error).__name__}: {error}") from None
    if width * height > limits.max_pixels:
        raise _Bad("too many pixels", f"{width}x{height}, the limit is {limits.max_pixels} pixels")
    if min(width, height) < limits.min_side:
        raise _Bad("too small", f"{width}x{height}, the limit is {limits.min_side}")
    if max(width, height) > limits.max_aspect * min(width, height):
        raise _Bad("extreme aspect", f"{width}x{height}, the limit is {limits.max_aspect:g}")
    if has_frames and not limits.first_frame:
        raise _Bad("animation", f"{kind} of several frames")
    return kind, has_frames


def _has_magic(data: bytes) -> bool:
    return data.startswith(_MAGIC) or (data[:4] == b"RIFF" and data[8:12] == b"WEBP")


def _broken(data: bytes, detail: str) -> _Bad:
    if data[:4] == b"RIFF":
        cut = len(data) < 8 + int.from_bytes(data[4:8], "little")
    elif data[:4] == b"\x89PNG":
        cut = b"IEND" not in data[-64:]
    elif data[:2] == b"\xff\xd8":
        cut = b"\xff\xd9" not in data[-64:]
    else:
        cut = "truncated" in detail.lower()
    return _Bad("truncated picture" if cut else "damaged picture", detail)
