"""The grid of pictures that a run makes on the way."""

PICTURES = 16  # of a grid
PIXELS = PICTURES * 128**2  # that a step of the sampler takes at a time: a whole grid of 1024 x 1024 fills no GPU


def rows_of(resolution: int) -> int:
    """Pictures of a grid that are sampled together."""
    return max(1, min(PICTURES, PIXELS // resolution**2))
