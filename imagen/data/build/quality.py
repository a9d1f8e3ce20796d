"""Check records once before they are stored; a rejected record gets exactly one reason."""

import hashlib
import io
import re
import unicodedata
from dataclasses import dataclass, field

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError

from imagen import distribution
from imagen.data.build.masters import encode_masters
from imagen.data.embed.sidecar import to_bf16_bits
from imagen.data.sources.base import Record
from imagen.pictures import MAX_PIXELS, BadPicture, UnknownRange, decode, missing_format
from imagen.pictures.decoding import read_header

# Meaning of each reason. Sources give the first group, `check` the second, `imagen.data.build.dataset` the third.
REASONS = {
    "missing file": "a file that the source names does not exist",
    "unreadable file": "a file that the source names cannot be read",
    "broken row": "a row, line or tar member does not follow its format",
    "broken tar": "the tar ends or is damaged after its last complete sample",
    "bad embedding": "the embedding of the source cannot be read",
    "bad base64": "the image's text is not base64",
    "missing image": "the record has no image",
    "not a picture": "the bytes are in no supported format (jpeg, png, webp, gif, bmp, tiff, avif, jpeg 2000, ...)",
    "no decoder": "HEIC, JPEG XL or another format whose decoder is not installed",
    "truncated picture": "the file ends before the image is complete",
    "damaged picture": "the decoder or a checksum in the file reports wrong pixels",
    "too many pixels": "a decompression bomb: the header gives more pixels than the limit; none was decoded",
    "too small": "the shorter side has fewer pixels than --min-side",
    "extreme aspect": "the longer side is more than --max-aspect times the shorter one",
    "animation": "several frames or pages (GIF, APNG, animated WebP, TIFF); --first-frame takes the first",
    "pixel type": "32-bit integers outside the 16-bit range, or floats outside 0 to 1: the white level is unknown",
    "missing caption": "the record has no caption",
    "empty caption": "the caption is empty or white space",
    "not UTF-8": "the caption's bytes are not UTF-8, or it contains U+FFFD from an earlier replacement",
    "control characters": "the caption contains control characters other than tab and line end",
    "long caption": "the caption has more characters than --max-caption",
    "missing embedding": "the record has no embedding although --encoder is given",
    "empty embedding": "the embedding has no tokens",
    "embedding width": "the embedding is not [tokens, width] with the width of the other embeddings",
    "long embedding": "the embedding has more tokens than --max-tokens",
    "embedding not finite": "the embedding contains NaN or infinity, possibly only after rounding to bfloat16",
    "repeated key": "an earlier record of the same part of the source has this key",
    "second picture": "the tar's sample contains another image, which is used instead",
    "caption of several": "one of several captions was rejected; the image is used with the others",
    "format": "bmp, gif, tiff, avif or a similar format in a tar that is used in place (--copy converts it)",
    "duplicate": "an earlier sample has the same pixels (--keep-duplicates accepts it)",
}
# The option of a build that accepts records with a reason, or another remedy.
REMEDIES = {
    "no decoder": f"run: pip install '{distribution.NAME}[formats]'",
    "animation": "give --first-frame",
    "too small": "give a smaller --min-side",
    "extreme aspect": "give a larger --max-aspect",
    "long caption": "give a larger --max-caption",
    "long embedding": "give a larger --max-tokens",
    "missing embedding": "omit --encoder and encode afterwards",
    "duplicate": "give --keep-duplicates, or place rows with the same image next to each other",
    "format": "give --copy --out",
    "repeated key": "give each sample of a tar a unique name",
}
# Remedies for one kind of source, which take precedence.
_REMEDIES_OF = {
    "table": {
        "missing caption": "name the column of captions with --caption-column",
        "missing file": "make paths relative to the table's folder, and name their column with --image-column",
        "bad base64": "name the column of images with --image-column",
    },
    "folder": {
        "missing caption": "put captions beside the images (KEY.txt), or give --caption-from folder, or name",
        "missing file": "put images beside the captions",
    },
    "tars in place": {"missing caption": "give --copy --out, which also reads captions in .json and .caption"},
}
BESIDE_SAMPLES = ("second picture", "caption of several")  # reasons for rejecting part of a sample
_STORED_AS = {"JPEG": "jpg", "MPO": "jpg", "PNG": "png", "WEBP": "webp"}  # what training reads; MPO: jpeg and preview
_MAGIC = (b"\xff\xd8", b"\x89PNG", b"GIF8", b"BM", b"II*\0", b"MM\0*")


def remedy(reason: str, kind: str) -> str | None:
    """Return what to do about records with this reason; None if nothing helps.

    kind: of the source; "table", "folder", "tars in place" or another.
    """
    return _REMEDIES_OF.get(kind, {}).get(reason) or REMEDIES.get(reason)


@dataclass(frozen=True, kw_only=True)
class Limits:
    min_side: int = 64  # pixels of the shorter side
    max_aspect: float = 4.0  # longer side / shorter side
    max_pixels: int = MAX_PIXELS
    first_frame: bool = False  # accept animations, by their first frame
    max_caption: int = 2000  # characters
    max_tokens: int | None = None  # of an embedding; None: the source has no embeddings
    embedding_width: int | None = None
    sizes: tuple[int, ...] = ()  # of masters that are stored in place of the image; none: the image itself


@dataclass(frozen=True, kw_only=True)
class AcceptedRecord:
    """An accepted record, in the form in which it is stored."""

    image: bytes  # the record's bytes, or a PNG of the same pixels if training cannot read the format
    extension: str  # of the detected format: "jpg", "png" or "webp"
    converted: bool  # whether `image` differs from the record's bytes
    captions: tuple[str, ...]  # at least one, stripped, distinct
    rejected_captions: "tuple[RejectedRecord, ...]"  # an accepted record has at least one other caption
    bits: np.ndarray | None  # uint16 [L, D]: the embedding in bfloat16
    pixel_hash: int  # 64-bit hash of the decoded, upright RGB pixels
    masters: dict[str, bytes] = field(default_factory=dict)  # by extension, see `imagen.data.build.masters`

    @property
    def caption(self) -> str:
        """Return the first caption."""
        return self.captions[0]

    def members(self, sizes: tuple[int, ...]) -> dict[str, bytes]:
        """Return what is stored: the masters, and the image itself unless all `sizes` have one."""
        return (
            self.masters if sizes and len(self.masters) == len(sizes) else {self.extension: self.image, **self.masters}
        )


@dataclass(frozen=True)
class RejectedRecord:
    reason: str  # one of REASONS
    detail: str


class _Rejection(Exception):
    """Raised with the arguments (reason, detail) when a check fails."""


def check(record: Record, limits: Limits) -> AcceptedRecord | RejectedRecord:
    """Check whether a record can be used for training: cheap checks first, then one full decode of the image."""
    try:
        if record.problem is not None:
            raise _Rejection(*record.problem)
        if not record.image:
            raise _Rejection("missing image", "no bytes")
        captions, rejected_captions = _captions(record, limits)
        bits = _embedding(record.embedding, limits)
        if bits is not None and len(captions) > 1:
            raise _Rejection("bad embedding", f"one embedding for {len(captions)} captions")
        return _picture(record.image, captions, rejected_captions, bits, limits)
    except _Rejection as bad:
        return RejectedRecord(*bad.args)


def _captions(record: Record, limits: Limits) -> tuple[tuple[str, ...], tuple[RejectedRecord, ...]]:
    """Return the accepted captions and the rejected ones; raise the first _Rejection if all are."""
    if not record.further:
        return (_caption(record, record.caption, limits),), ()
    good: dict[str, None] = {}
    bad: list[RejectedRecord] = []
    texts = (record.caption, *record.further)
    for number, text in enumerate(texts, 1):
        try:
            good[_caption(record, text, limits)] = None
        except _Rejection as error:
            reason, detail = error.args
            bad.append(RejectedRecord(reason, f"caption {number} of {len(texts)}: {detail}"))
    if not good:
        raise _Rejection(bad[0].reason, bad[0].detail)
    return tuple(good), tuple(bad)


def _caption(record: Record, text: str | bytes | None, limits: Limits) -> str:
    if isinstance(text, bytes):
        try:
            text = text.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise _Rejection("not UTF-8", f"byte {error.object[error.start]:#04x} at {error.start}") from None
    if text is None:
        if record.embedding is not None:  # the source stores the embedding instead of the text
            return ""
        raise _Rejection("missing caption", "none")
    text = text.removeprefix("\ufeff").strip()
    if not text and record.embedding is None:
        raise _Rejection("empty caption", "only white space")
    for index, character in enumerate(text):
        if character == "\ufffd" or "\ud800" <= character <= "\udfff":  # surrogates: invalid bytes
            raise _Rejection("not UTF-8", f"{character!a} at character {index}")
        if unicodedata.category(character) == "Cc" and character not in "\t\n\r":
            raise _Rejection("control characters", f"{character!a} at character {index}")
    if len(text) > limits.max_caption:
        raise _Rejection("long caption", f"{len(text)} characters, the limit is {limits.max_caption}")
    return text


def _embedding(embedding: np.ndarray | None, limits: Limits) -> np.ndarray | None:
    if limits.max_tokens is None:
        return None
    if embedding is None:
        raise _Rejection("missing embedding", "none")
    if embedding.ndim != 2 or embedding.shape[1] != limits.embedding_width or embedding.dtype.kind not in "fiu":
        raise _Rejection(
            "embedding width", f"{embedding.dtype} {list(embedding.shape)}, not [L, {limits.embedding_width}]"
        )
    if len(embedding) == 0:
        raise _Rejection("empty embedding", "no tokens")
    if len(embedding) > limits.max_tokens:
        raise _Rejection("long embedding", f"{len(embedding)} tokens, the limit is {limits.max_tokens}")
    with np.errstate(over="ignore"):
        tokens = torch.from_numpy(embedding.astype(np.float32)).to(torch.bfloat16)
    if not torch.isfinite(tokens).all():
        row, column = (~torch.isfinite(tokens)).nonzero()[0].tolist()
        raise _Rejection("embedding not finite", f"{embedding[row, column]} at token {row}, number {column}")
    return to_bf16_bits(tokens)


def _picture(
    data: bytes,
    captions: tuple[str, ...],
    rejected_captions: tuple[RejectedRecord, ...],
    bits: np.ndarray | None,
    limits: Limits,
) -> AcceptedRecord:
    kind, has_frames = _header(data, limits)
    try:
        pixels_HWC = decode(data, strict=True)
    except UnknownRange as error:
        raise _Rejection("pixel type", str(error)) from None
    except BadPicture as error:
        raise _broken(data, str(error)) from None
    digest = hashlib.blake2b(repr(pixels_HWC.shape).encode(), digest_size=8)
    digest.update(pixels_HWC.data)
    converted = kind not in _STORED_AS or has_frames
    if converted:
        file = io.BytesIO()
        Image.fromarray(pixels_HWC).save(file, "PNG")
        data = file.getvalue()
    return AcceptedRecord(
        image=data,
        extension="png" if converted else _STORED_AS[kind],
        converted=converted,
        captions=captions,
        rejected_captions=rejected_captions,
        bits=bits,
        pixel_hash=int.from_bytes(digest.digest(), "little"),
        masters=encode_masters(pixels_HWC, limits.sizes),
    )


def _header(data: bytes, limits: Limits) -> tuple[str, bool]:
    """Check the header without decoding pixels; return the format and whether there are several frames."""
    try:
        with read_header(data) as image:
            (width, height), kind = image.size, str(image.format)
            has_frames = kind != "MPO" and getattr(image, "is_animated", False)
    except Image.DecompressionBombError as error:
        pixels = re.search(r"\d+", str(error))
        raise _Rejection(
            "too many pixels", f"{pixels and pixels[0]} pixels, the limit is {limits.max_pixels}"
        ) from None
    except UnidentifiedImageError:  # its message contains a memory address
        if missing := missing_format(data):
            raise _Rejection("no decoder", missing) from None
        if not _has_magic(data):
            raise _Rejection("not a picture", f"begins {data[:8]!r}") from None
        raise _broken(data, "cannot be opened") from None
    except Exception as error:  # Pillow raises almost anything on hostile bytes
        raise _broken(data, f"{type(error).__name__}: {error}") from None
    if width * height > limits.max_pixels:
        raise _Rejection("too many pixels", f"{width}x{height}, the limit is {limits.max_pixels} pixels")
    if min(width, height) < limits.min_side:
        raise _Rejection("too small", f"{width}x{height}, the limit is {limits.min_side}")
    if max(width, height) > limits.max_aspect * min(width, height):
        raise _Rejection("extreme aspect", f"{width}x{height}, the limit is {limits.max_aspect:g}")
    if has_frames and not limits.first_frame:
        raise _Rejection("animation", f"{kind} of several frames")
    return kind, has_frames


def _has_magic(data: bytes) -> bool:
    return data.startswith(_MAGIC) or (data[:4] == b"RIFF" and data[8:12] == b"WEBP")


def _broken(data: bytes, detail: str) -> _Rejection:
    if data[:4] == b"RIFF":
        cut = len(data) < 8 + int.from_bytes(data[4:8], "little")
    elif data[:4] == b"\x89PNG":
        cut = b"IEND" not in data[-64:]
    elif data[:2] == b"\xff\xd8":
        cut = b"\xff\xd9" not in data[-64:]
    else:
        cut = "truncated" in detail.lower()
    return _Rejection("truncated picture" if cut else "damaged picture", detail)
