"""The package's name where it is installed from, which is not the name it is imported by, and what may clash with it.

On the Python Package Index `imagen` is another project, and imagen-pytorch brings a command `imagen`, too.
"""

import shutil
from collections.abc import Iterator
from contextlib import suppress
from importlib import metadata
from pathlib import Path

from imagen.errors import UserError

NAME = "imagen-cascade"


def missing(what: str, extra: str) -> UserError:
    """Return the error of an optional package that is not installed.

    what: which one and what needs it, "drawing needs the package matplotlib". extra: of ours, that brings it.
    """
    return UserError(f"{what}; run: pip install '{NAME}[{extra}]'")


def clashes() -> Iterator[str]:
    """Yield a line for each other package that has put a module or a command `imagen` here. Takes milliseconds."""
    remedy = f"run: pip uninstall imagen && pip install --force-reinstall --no-deps {NAME}"
    with suppress(metadata.PackageNotFoundError):
        other = metadata.distribution("imagen")
        yield f"the package imagen {other.version} is installed into the same folder as {NAME}; {remedy}"
    command = shutil.which("imagen")
    if command is not None and not _is_ours(Path(command)):
        yield f"the command {command} is another package's; use `imagen-cascade` or `python -m imagen`"


def _is_ours(command: Path) -> bool:
    """Whether a command starts this package; True for what is no script, such as Windows's launchers."""
    try:
        with command.open("rb") as file:
            script = file.read(4096)
    except OSError:
        return True
    return not script.startswith(b"#!") or b"imagen_cascade" in script
