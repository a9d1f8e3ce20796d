"""Weights that come with the package, each in a folder named here: `imagen.load("emoji")`.

emoji/       the reference cascade, text -> 64 -> 256 -> 1024
curves.json  of its training, by preset (`imagen.evaluate.compare`)
recogniser/  names the objects in a picture (`imagen.emoji.recogniser`)
"""

from importlib.resources import files
from pathlib import Path

from imagen.errors import UserError

CASCADES = ("emoji",)
HELP = "train them: runs/emoji_reference.sh in the repository says how"


def packaged(name: str) -> Path | None:
    """The folder of the cascade of that name; None for a name that is none of the package's.

    UserError if this copy of the package holds no weights.
    """
    if name not in CASCADES:
        return None
    folder = packaged_path(name)
    if not (folder / "cascade.json").is_file():
        raise UserError(f"this copy of imagen comes without the weights {name!r}; {HELP}")
    return folder


def packaged_path(name: str) -> Path:
    """Where the weights of that name are, or would be."""
    return Path(str(files("imagen.weights"))) / name
