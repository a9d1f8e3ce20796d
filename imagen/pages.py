"""Render HTML pages from Jinja2 templates. All inserted values are escaped."""

import base64
import io
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image

from imagen.files import replacing


def write_page(path: str | Path, template: Path, **values: Any) -> None:
    """Render a template file to `path`, atomically, in UTF-8; unencodable characters are written as escapes.

    values: for the template. Raises UserError if the page cannot be written.
    """
    environment = Environment(
        loader=FileSystemLoader(template.parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template(template.name).render(**values)
    with replacing(path) as temporary:
        temporary.write_text(page, encoding="utf-8", errors="backslashreplace")


def data_url(image: Image.Image, format: str = "PNG", **options: Any) -> str:
    """Return an image as a data URL, to embed in a page. options: of Pillow's `save`."""
    file = io.BytesIO()
    image.save(file, format, **options)
    return f"data:image/{format.lower()};base64," + base64.b64encode(file.getvalue()).decode()
