"""Detect the objects in an image and their positions with a small network trained on the original drawings.

For each cell of a 16 x 16 grid, one forward pass predicts whether an object's centre is there, and which object it is.
One network therefore scores objects, counts and relations. It classifies among a closed set of objects and returns the
most similar one; it does not measure how well an object is drawn.
"""

import hashlib
from collections.abc import Collection, Iterator, Sequence
from functools import cache, cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from imagen.errors import UserError
from imagen.files import read_json
from imagen.weights import packaged_path

SIDE, GRID = 64, 16  # side of the input in pixels, and of the output in cells
MIN_LOGIT = 0.0  # minimum logit of a centre for a detection: a probability of 0.5
PACKAGED = ("openmoji", "fluent")  # the drawings that the packaged recognisers distinguish
MAX_WIDTH = 512
CONFIG, WEIGHTS = "recogniser.json", "recogniser.safetensors"


class Detection(NamedTuple):
    """An object detected in an image."""

    name: str
    probability: float  # of a centre at this position
    x: float  # of the centre, as a fraction of the image's side, 0 at the left
    y: float  # 0 at the top


class Recogniser(nn.Module):
    """Map images [B, 3, 64, 64] in [-1, 1] to centre logits [B, 16, 16] and class logits [B, K, 16, 16]."""

    def __init__(self, names: Sequence[str], width: int = 48):
        super().__init__()
        self.names, self.width = list(names), width
        C = width
        self.stem = _conv(3, C // 2, 5, stride=2)
        self.at_16 = nn.Sequential(_conv(C // 2, C, 3, stride=2), Residual(C))
        self.at_8 = nn.Sequential(_conv(C, 2 * C, 3, stride=2), Residual(2 * C), Residual(2 * C))
        self.at_4 = nn.Sequential(_conv(2 * C, 3 * C, 3, stride=2), Residual(3 * C), Residual(3 * C))
        self.from_8, self.from_16 = nn.Conv2d(2 * C, 3 * C, 1), nn.Conv2d(C, 3 * C, 1)
        self.mix = _conv(3 * C, 2 * C, 3)
        self.centre = nn.Conv2d(2 * C, 1, 1)
        self.kind = nn.Conv2d(2 * C, len(self.names), 1)

    @cached_property
    def sha256(self) -> str:
        """Hash of the weights, in 16 hexadecimal digits."""
        digest = hashlib.sha256()
        for name, value in sorted(self.state_dict().items()):
            digest.update(name.encode() + value.half().numpy().tobytes())
        return digest.hexdigest()[:16]

    def features(self, x_BCHW: Tensor) -> Tensor:
        """Return the features from which both outputs are computed, [B, 2 C, 16, 16]."""
        at_16 = self.at_16(self.stem(x_BCHW))
        at_8 = self.at_8(at_16)
        h_BCHW = F.interpolate(self.at_4(at_8), scale_factor=2) + self.from_8(at_8)
        return self.mix(F.interpolate(h_BCHW, scale_factor=2) + self.from_16(at_16))

    def forward(self, x_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """Return the centre logits [B, 16, 16] and the class logits [B, K, 16, 16]."""
        h_BCHW = self.features(x_BCHW)
        return self.centre(h_BCHW)[:, 0], self.kind(h_BCHW)

    @torch.no_grad()
    def detect(self, images: Sequence[Image.Image], batch_size: int = 64) -> list[list[Detection]]:
        """Return the detections in each square image, most probable first, at least one per image."""
        found = []
        for x_BCHW in _batches(images, batch_size):
            centre_BHW, kind_BKHW = self(x_BCHW)
            found += [self._peaks(c, k) for c, k in zip(centre_BHW, kind_BKHW, strict=True)]
        return found

    @torch.no_grad()
    def embed(self, images: Sequence[Image.Image], batch_size: int = 64) -> np.ndarray:
        """Return features [N, 4 C] of images for the kernel distance: channel means and standard deviations at 8 x 8.

        The last layer is unsuitable, because it was trained to be invariant to blur and noise.
        """
        found = [self.at_8(self.at_16(self.stem(x_BCHW))) for x_BCHW in _batches(images, batch_size)]
        return torch.cat([torch.cat([h.mean((2, 3)), h.std((2, 3))], dim=1) for h in found]).numpy()

    def _peaks(self, centre_HW: Tensor, kind_KHW: Tensor) -> list[Detection]:
        """Return the detections at local maxima, because one object activates several cells.

        Of the logits: sigmoids of neighbours may be equal after rounding, and one object would count twice. The class
        is that of the 3 x 3 cells around the peak, weighted by their probability of a centre: only the cell of the
        centre was trained to name the object, and the peak is sometimes next to it.
        """
        highest_HW = F.max_pool2d(centre_HW[None, None], 3, stride=1, padding=1)[0, 0]
        peak_HW = (centre_HW == highest_HW) & (centre_HW >= min(MIN_LOGIT, float(centre_HW.max())))
        named_KHW = F.avg_pool2d(kind_KHW.softmax(0) * centre_HW.sigmoid(), 3, stride=1, padding=1)
        detections = []
        for row, column in peak_HW.nonzero().tolist():
            name = self.names[int(named_KHW[:, row, column].argmax())]
            probability = float(centre_HW[row, column].sigmoid())
            detections.append(Detection(name, probability, (column + 0.5) / GRID, (row + 0.5) / GRID))
        return sorted(detections, key=lambda each: -each.probability)


class Residual(nn.Module):
    """Residual block of two convolutions with group norm."""

    def __init__(self, channels: int):
        super().__init__()
        self.first = _conv(channels, channels, 3)
        self.second = nn.Sequential(nn.Conv2d(channels, channels, 3, padding=1), nn.GroupNorm(8, channels))

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return F.relu(x_BCHW + self.second(self.first(x_BCHW)))


def packaged_recogniser(names: Collection[str] = ()) -> Path:
    """Return the folder of the packaged recogniser for a cascade that was trained on `names` (default: OpenMoji's).

    It is the one with the largest share of its own names among `names`.
    """

    def share(folder: Path) -> float:
        if not (folder / CONFIG).is_file():
            return 0.0
        own = {name.split("/")[0] for name in read_json(folder / CONFIG)["names"]}
        return len(own & set(names)) / len(own)

    return max((packaged_path(f"recogniser-{drawings}") for drawings in PACKAGED), key=share)


@cache
def load_recogniser(folder: str | Path | None = None) -> Recogniser:
    """Load the recogniser in `folder` (default: that of OpenMoji). Raises UserError if it is missing or damaged."""
    folder = packaged_recogniser() if folder is None else Path(folder)
    if not (folder / CONFIG).is_file():
        raise UserError(f"{folder} contains no recogniser; train one with: python -m imagen.emoji.recogniser_training")
    config: dict[str, Any] = read_json(folder / CONFIG)
    try:
        names, width = config["names"], config["width"]
        if not names or not all(isinstance(name, str) and name for name in names):
            raise ValueError("its names are not texts")
        if not isinstance(width, int) or not 0 < width <= MAX_WIDTH:
            raise ValueError(f"its width is not between 1 and {MAX_WIDTH}")
        weights = {name: value.float() for name, value in load_file(folder / WEIGHTS).items()}
        if not all(value.isfinite().all() for value in weights.values()):
            raise ValueError("its weights are not finite")
        network = Recogniser(names, width)
        network.load_state_dict(weights)
    except (KeyError, TypeError, ValueError, OSError, RuntimeError, SafetensorError) as error:
        raise UserError(f"{folder} contains a damaged recogniser: {' '.join(str(error).split())[:200]}") from None
    return network.eval()


def to_input(images: Sequence[Image.Image]) -> Tensor:
    """Convert images to the network's input, [B, 3, 64, 64] in [-1, 1]."""
    small = [
        image.convert("RGB")
        if image.size == (SIDE, SIDE)
        # The box filter matches the renderer: a pixel is the mean of the area that it covers.
        else image.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BOX)
        for image in images
    ]
    return torch.from_numpy(np.stack([np.asarray(image) for image in small])).permute(0, 3, 1, 2) / 127.5 - 1


def _batches(images: Sequence[Image.Image], batch_size: int) -> Iterator[Tensor]:
    for begin in range(0, len(images), batch_size):
        yield to_input(images[begin : begin + batch_size])


def _conv(channels_in: int, channels: int, size: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels_in, channels, size, stride=stride, padding=size // 2),
        nn.GroupNorm(8, channels),
        nn.ReLU(inplace=True),
    )
