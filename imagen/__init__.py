"""Imagen: text-to-image diffusion cascades in pixel space (arXiv 2205.11487)."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from imagen.cascade import Cascade
    from imagen.precision import Precision

__version__ = "0.1.0"
__title__ = "imagen-cascade"  # tells this `imagen` from others (imagen_cascade.py)


def load(path: Any, *, stages: int | None = None, precision: "Precision" = "fp32") -> "Cascade":
    """The cascade in a folder, or the one stage of a training run; `imagen.load(path).sample(["a red apple"])`.

    path: a folder; the name of weights that come with the package, "emoji"; else org/name on the Hugging Face hub, of
        whose files only safetensors and JSON are read.
    stages: only the first so many.
    precision: "bf16" or "fp16" holds the weights in half of the memory, for sampling in that format; "auto": as the
        processor multiplies.

    Raises UserError if anything is missing or damaged.
    """
    from imagen.cascade import Cascade

    return Cascade.load(path, stages=stages, precision=precision)
