"""Plant good and defective pairs in data sets of every format, for `tests/data/build/test_conservation.py`."""

from dataclasses import dataclass, field
from pathlib import Path

from corpus import DEFECTS as PLANTED
from corpus import FURTHER_DEFECTS, GOOD, encoded, picture

DEFECTS = PLANTED | FURTHER_DEFECTS


COPIES = ("the same file again", "the same pixels in another format")


@dataclass
class PlantedPair:
    """Image number `i`, a caption that contains the number, and the planted defect, if any."""

    i: int
    ending: str  # of the name of the image file
    image: bytes
    caption: bytes | None
    defect: str | None = None


@dataclass
class WrittenSource:
    """A source as written in one format, and the result that a build must have."""

    path: Path
    pairs: int = 0  # records that a build must account for
    good: set[int] = field(default_factory=set)  # numbers of the images that must become samples
    maybe: set[int] = field(default_factory=set)  # numbers of the images that may become samples
    caption_rows: int = 0  # rows with further captions for images that are counted in `pairs`

    def add(self, pair: PlantedPair, is_good: bool | None = None) -> None:
        """Count a pair. It must become a sample if `is_good`; by default, if it has no defect."""
        self.pairs += 1
        if pair.defect is None if is_good is None else is_good:
            self.good.add(pair.i)


def plain_pair(i: int) -> PlantedPair:
    return PlantedPair(i, "png", encoded(picture(i), "PNG"), b"picture %d" % i)


def planted_pairs() -> list[PlantedPair]:
    """Return good pairs of all kinds, then one pair for each defect."""
    pairs = [plain_pair(0)]
    for i, (ending, make) in enumerate(GOOD.values(), 1):
        pairs.append(PlantedPair(i, ending, make(i), b"picture %d" % i))
    for i, (name, (_, ending, bad_picture, bad_caption)) in enumerate(DEFECTS.items(), 100):
        image = (bad_picture or GOOD["png"][1])(i)
        if name in COPIES:  # of the first pair
            image = encoded(picture(0), "PNG" if name == COPIES[0] else "BMP")
        caption = None if name == "no caption" else (bad_caption or (lambda i: b"picture %d" % i))(i)
        pairs.append(PlantedPair(i, ending, image, caption, name))
    return pairs
