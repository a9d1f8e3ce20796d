"""Convert pixels to sRGB with the ICC profile embedded in an image."""

import io
from functools import lru_cache

import numpy as np
from PIL import Image, ImageCms

_SRGB = ImageCms.createProfile("sRGB")
# Relative colorimetric with black point compensation, like image editors.
_INTENT, _FLAGS = ImageCms.Intent.RELATIVE_COLORIMETRIC, ImageCms.Flags.BLACKPOINTCOMPENSATION
_SPACES = {"RGB": "RGB ", "L": "GRAY", "CMYK": "CMYK"}  # Pillow mode: colour space of the profile


def from_rgb(rgb_HWC: np.ndarray, profile: bytes | None) -> np.ndarray:
    """Convert uint8 RGB [H, W, 3] to sRGB."""
    transform = _to_srgb(profile, "RGB")
    return rgb_HWC if transform is None else _apply(Image.fromarray(rgb_HWC), transform)


def from_grey(grey_HW: np.ndarray, profile: bytes | None) -> np.ndarray:
    """Convert uint8 grey [H, W] to sRGB [H, W, 3]."""
    transform = _to_srgb(profile, "L")
    if transform is None:
        return np.repeat(grey_HW[..., None], 3, axis=2)
    return _apply(Image.fromarray(grey_HW), transform)


def from_cmyk(image: Image.Image, profile: bytes | None) -> np.ndarray:
    """Convert an image of mode CMYK to sRGB uint8 [H, W, 3]; without a profile, use Pillow's simple formula."""
    transform = _to_srgb(profile, "CMYK")
    return np.asarray(image.convert("RGB")) if transform is None else _apply(image, transform)


def from_lab(image: Image.Image) -> np.ndarray:
    """Convert an image of mode LAB (CIELAB, D50) to sRGB uint8 [H, W, 3]."""
    return _apply(image, _lab_to_srgb())


def _apply(image: Image.Image, transform: ImageCms.ImageCmsTransform) -> np.ndarray:
    converted = ImageCms.applyTransform(image, transform)
    assert converted is not None  # it is None only with inPlace
    return np.asarray(converted)


@lru_cache(maxsize=16)
def _to_srgb(profile: bytes | None, mode: str) -> ImageCms.ImageCmsTransform | None:
    """Return the transform of a profile; None if it has no effect, is broken, or is for another mode than `mode`.

    Most profiles are sRGB. They are recognised once and cached, so they cost nothing per image.
    """
    if profile is None:
        return None
    try:
        opened = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if opened.profile.xcolor_space != _SPACES[mode]:
            return None
        transform = ImageCms.buildTransform(opened, _SRGB, mode, "RGB", _INTENT, _FLAGS)
    except (ImageCms.PyCMSError, OSError, ValueError):
        return None
    return None if mode != "CMYK" and _is_identity(transform, mode) else transform


def _is_identity(transform: ImageCms.ImageCmsTransform, mode: str) -> bool:
    """Return whether the transform changes no colour of a grid by more than one level."""
    levels = np.linspace(0, 255, 17).round().astype(np.uint8)
    if mode == "L":
        before, expected = levels[None], np.repeat(levels[None, :, None], 3, axis=2)
    else:
        before = expected = np.stack(np.meshgrid(levels, levels, levels), axis=-1).reshape(17, -1, 3)
    after = _apply(Image.fromarray(before), transform)
    return bool(np.abs(after.astype(int) - expected).max() <= 1)


@lru_cache(maxsize=1)
def _lab_to_srgb() -> ImageCms.ImageCmsTransform:
    return ImageCms.buildTransform(ImageCms.createProfile("LAB"), _SRGB, "LAB", "RGB", _INTENT)
