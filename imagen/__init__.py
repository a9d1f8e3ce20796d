"""Imagen: text-to-image diffusion cascades in pixel space (arXiv 2205.11487)."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from imagen.cascade import Cascade

__version__ = "0.1.0"


def load(path: Any, *, stages: int | None = None) -> "Cascade":
    """The cascade in a folder, or the one stage of a training run; `imagen.load(path).sample(["a red apple"])`.

    path: a folder, or the name of weights that come with the package: "emoji".

    stages: only the first so many. Raises UserError if anything is missing or damaged.
    """
    from imagen.cascade import Cascade

    return Cascade.load(path, stages=stages)
