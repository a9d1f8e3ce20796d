"""Train and sample text-to-image diffusion cascades in pixel space (Imagen, arXiv 2205.11487).

    import imagen

    cascade = imagen.load("emoji")
    cascade.sample("a red apple")[0].save("apple.png")

Importing it is fast: torch is imported when a name is first used.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from imagen.errors import UserError
from imagen.hints import keyword_hints
from imagen.version import __version__

if TYPE_CHECKING:
    from imagen.cascade.cascade import Cascade
    from imagen.diffusion.noise import Variation
    from imagen.precision import Precision
    from imagen.train.callbacks import Callback
    from imagen.train.run import train_run

__title__ = "imagen-cascade"  # distinguishes this `imagen` from others (imagen_cascade.py)
__all__ = ["Callback", "Cascade", "UserError", "Variation", "__version__", "load", "train_run"]
_LAZY = {
    "Callback": "imagen.train.callbacks",
    "Cascade": "imagen.cascade.cascade",
    "Variation": "imagen.diffusion.noise",
    "train_run": "imagen.train.run",
}

_PACKAGES = ("cascade", "convert", "data", "evaluate", "presets", "stage", "text", "train")


@keyword_hints
def load(
    path: str | Path, *, stages: int | None = None, precision: "Precision" = "fp32", int8_text: bool = False
) -> "Cascade":
    """Load a cascade, or the one stage of a training run.

    path: a folder; "emoji", the cascade that is packaged with imagen; or org/name on the Hugging Face hub, from which
        only safetensors and JSON files are downloaded.
    stages: load only the first `stages` stages.
    precision: "bf16" or "fp16" stores the weights in that format, which halves their memory, for sampling in it;
        "auto": the format in which the device multiplies fastest.
    int8_text: store the text encoder's weights in 8 bits.

    Raises UserError if anything is missing or damaged. `Cascade.sample` takes all other options.
    """
    from imagen.cascade.cascade import Cascade

    return Cascade.load(path, stages=stages, precision=precision, int8_text=int8_text)


def __getattr__(name: str) -> Any:
    if name in _PACKAGES:  # allows `imagen.train.config` after `import imagen`
        from importlib import import_module

        return import_module(f"imagen.{name}")
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_LAZY[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
