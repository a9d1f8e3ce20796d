"""Recognise image files by their extensions. Whether a file can be decoded is checked when it is read."""

# Extensions without dots, in lower case: raster formats, including common ones that cannot be decoded here.
_READ = "apng avif avifs bmp dib gif j2c j2k jfi jfif jif jp2 jpc jpe jpeg jpf jpg jpx mpo pjp pjpeg png tif tiff webp"
_OTHERS = "heic heif heics hif jxl jxr wdp hdp bpg flif qoi pbm pgm ppm pnm pam pfm tga pcx exr hdr psd psb xcf"
_CAMERAS = "arw cr2 cr3 crw dng nef nrw orf pef raf raw rw2 srw"
PICTURES = frozenset(f"{_READ} {_OTHERS} {_CAMERAS}".split())
_DRAWINGS = "cur emf eps icns ico ps svg svgz wmf"
# Vector drawings and icons are accepted among images, but a folder with only these is not a folder of images.
LIKE_PICTURES = PICTURES | frozenset(_DRAWINGS.split())


def ending(name: str) -> str:
    """Return a file name's extension in lower case, without the dot; "" if there is none."""
    return name.rpartition("/")[2].rpartition(".")[2].lower() if "." in name else ""


def is_picture(name: str) -> bool:
    """Return whether a file name has the extension of an image."""
    return ending(name) in PICTURES
