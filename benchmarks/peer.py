"""The U-Net of imagen-pytorch 2.1.0, with the settings of the Paddle implementation's Unet64_397M, for comparison.

imagen-pytorch is installed into a temporary folder, without its dependencies (torchvision, accelerate, transformers and
more): its U-Net needs only einops. During the import, other modules that it imports are replaced by empty ones.
"""

import importlib
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from imagen.errors import UserError

REQUIREMENTS = ("imagen-pytorch==2.1.0", "einops==0.8.2", "beartype==0.23.1")

STAND_INS = (
    "torchvision",
    "torchvision.transforms",
    "kornia",
    "kornia.augmentation",
    "imagen_pytorch",
    "imagen_pytorch.t5",
)

# PaddleFleetX, ppfleetx/models/multimodal_model/imagen/modeling.py, class Unet64_397M.
UNET64_397M: dict[str, Any] = {
    "dim": 256,
    "dim_mults": (1, 2, 3, 4),
    "num_resnet_blocks": 3,
    "layer_attns": (False, True, True, True),
    "layer_cross_attns": (False, True, True, True),
    "attn_heads": 8,
    "ff_mult": 2.0,
    "memory_efficient": False,
}


def install(folder: Path) -> None:
    """Install imagen-pytorch into `folder` with pip. Raises UserError if that fails."""
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    done = subprocess.run([*command, "--no-deps", "--target", folder, *REQUIREMENTS], capture_output=True, text=True)
    if done.returncode:
        reason = (done.stderr.strip() or "no reason given").splitlines()[-1]
        raise UserError(f"cannot install {REQUIREMENTS[0]}, which the benchmark compares with: {reason}")


def unet_class(folder: Path) -> type[nn.Module]:
    """Return imagen-pytorch's class Unet. Keep `folder` while it is used: einops imports modules lazily."""
    stand_ins = {name: ModuleType(name) for name in STAND_INS}
    # The package without its __init__, which imports the trainer. Only the text encoder's width is needed.
    stand_ins["imagen_pytorch"].__path__ = [str(folder / "imagen_pytorch")]
    text: Any = stand_ins["imagen_pytorch.t5"]
    text.DEFAULT_T5_NAME, text.get_encoded_dim, text.t5_encode_text = "", lambda name: None, None

    hidden = {name: sys.modules[name] for name in STAND_INS if name in sys.modules}
    sys.modules.update(stand_ins)
    sys.path.insert(0, str(folder))
    try:
        return importlib.import_module("imagen_pytorch.imagen_pytorch").Unet
    finally:
        sys.path.remove(str(folder))
        for name in STAND_INS:
            del sys.modules[name]
        sys.modules.update(hidden)


def build(unet: type[nn.Module], text_width: int, tokens: int) -> nn.Module:
    """Build the U-Net. It pads every text to `tokens`, because its default of 256 would only cost time."""
    return unet(**UNET64_397M, text_embed_dim=text_width, max_text_len=tokens)
