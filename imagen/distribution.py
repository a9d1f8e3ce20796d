"""Name the distribution, which differs from the import name, and detect packages that conflict with it.

On PyPI, `imagen` is a different project, and imagen-pytorch also installs a command `imagen`.
"""

import shutil
from collections.abc import Iterator
from contextlib import suppress
from importlib import metadata
from pathlib import Path

from imagen.errors import UserError

NAME = "imagen-cascade"


def missing(what: str, extra: str) -> UserError:
    """Return the error for an optional package that is not installed.

    what: the package and its use, as in "drawing needs the package matplotlib". extra: the extra that installs it.
    """
    return UserError(f"{what}; run: pip install '{NAME}[{extra}]'")


def clashes() -> Iterator[str]:
    """Yield a message for each other package that installed a module or a command `imagen`. Takes milliseconds."""
    remedy = f"run: pip uninstall imagen && pip install --force-reinstall --no-deps {NAME}"
    with suppress(metadata.PackageNotFoundError):
        other = metadata.distribution("imagen")
        yield f"the package imagen {other.version} is installed into the same folder as {NAME}; {remedy}"
    command = shutil.which("imagen")
    if command is not None and not _is_ours(Path(command)):
        yield f"the command {command} is another package's; use `imagen-cascade` or `python -m imagen`"


def _is_ours(command: Path) -> bool:
    """Return whether a command starts this package. True for commands that are not scripts, as on Windows."""
    try:
        with command.open("rb") as file:
            script = file.read(4096)
    except OSError:
        return True
    return not script.startswith(b"#!") or b"imagen_cascade" in script
