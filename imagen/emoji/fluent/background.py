"""Draw backgrounds of one named colour, plain or with a soft gradient, the same at every size."""

import math
import random
from dataclasses import dataclass

import numpy as np

from imagen.emoji.picture import PALETTE

DARKER, LIGHTER = 0.20, 0.28  # how far the ends of a gradient are mixed with black and with white


@dataclass(frozen=True, kw_only=True)
class Background:
    """A colour of PALETTE, or a gradient around it from darker to lighter."""

    colour: str
    gradient: str | None = None  # "linear" or "radial"; None: plain
    angle: float = 0.0  # linear: the direction to the lighter end, in radians, 0 to the right, pi/2 downwards

    def pixels(self, size: int) -> np.ndarray:
        """Return the background as float32 [size, size, 3] in [0, 255]."""
        colour = np.array(PALETTE[self.colour], dtype=np.float32)
        if self.gradient is None:
            return np.broadcast_to(colour, (size, size, 3)).copy()
        centres = (np.arange(size, dtype=np.float32) + 0.5) / size - 0.5  # of the pixels, from the image centre
        x_HW, y_HW = centres[None, :], centres[:, None]
        if self.gradient == "radial":
            light_HW = 1 - 2 * np.sqrt(x_HW**2 + y_HW**2) / math.sqrt(2)  # 1 in the middle, 0 in the corners
        else:
            dx, dy = math.cos(self.angle), math.sin(self.angle)
            light_HW = 0.5 + (x_HW * dx + y_HW * dy) / (abs(dx) + abs(dy))
        dark, light = colour * (1 - DARKER), colour + (255 - colour) * LIGHTER
        return (dark + (light - dark) * np.asarray(light_HW)[..., None]).astype(np.float32)

    @property
    def words(self) -> str:
        """The description without an article: "blue background" or "blue gradient background"."""
        return f"{self.colour} background" if self.gradient is None else f"{self.colour} gradient background"

    @property
    def phrase(self) -> str:
        """The description with its article: "an orange background"."""
        return f"{'an' if self.colour[0] in 'aeiou' else 'a'} {self.words}"


def draw_background(rng: random.Random, colour: str, graded: float = 0.4) -> Background:
    """Return a random background of `colour`: a gradient with probability `graded`, and a third of these are radial."""
    kind, turn = rng.random(), rng.random()
    if kind >= graded:
        return Background(colour=colour)
    if kind < graded / 3:
        return Background(colour=colour, gradient="radial")
    return Background(colour=colour, gradient="linear", angle=round(turn * 2 * math.pi, 4))
