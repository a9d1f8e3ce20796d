"""Find the weights that are packaged with imagen, as in `imagen.load("emoji")`.

emoji/       the reference cascade, text -> 64 -> 256 -> 1024
curves.json  training curves of its stages, by preset (`imagen.evaluate.compare`)
recogniser-*/  detectors of the objects in an image (`imagen.emoji.recogniser`)
"""

from importlib.resources import files
from pathlib import Path

from imagen.errors import UserError

CASCADES = ("emoji",)
HELP = "train them with runs/emoji_reference.sh in the repository"


def packaged(name: str) -> Path | None:
    """Return the folder of a packaged cascade; None for an unknown name.

    Raises UserError if this installation lacks the weights.
    """
    if name not in CASCADES:
        return None
    folder = packaged_path(name)
    if not (folder / "cascade.json").is_file():
        raise UserError(f"this installation of imagen lacks the weights {name!r}; {HELP}")
    return folder


def packaged_path(name: str) -> Path:
    """Return the path of packaged weights, whether or not they exist."""
    return Path(str(files("imagen.weights"))) / name
