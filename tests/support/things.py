"""Pairs as they were meant, with the defects of `corpus.py` among them, for `tests/data/build/test_conservation.py`."""

from dataclasses import dataclass, field
from pathlib import Path

from corpus import DEFECTS as PLANTED
from corpus import FURTHER_DEFECTS, GOOD, encoded, picture

DEFECTS = PLANTED | FURTHER_DEFECTS


COPIES = ("the same file again", "the same pixels in another format")


@dataclass
class Thing:
    """A pair as it was meant: picture number `i`, and a caption that says so."""

    i: int
    ending: str
    image: bytes
    caption: bytes | None
    defect: str | None = None


@dataclass
class Made:
    """What a format was given."""

    path: Path
    things: int = 0
    good: set[int] = field(default_factory=set)  # numbers of those that must arrive
    maybe: set[int] = field(default_factory=set)  # of those that may
    rows_of_others: int = 0  # rows with further captions of pictures that are things already

    def add(self, thing: Thing, is_good: bool | None = None) -> None:
        self.things += 1
        if thing.defect is None if is_good is None else is_good:
            self.good.add(thing.i)


def plain(i: int) -> Thing:
    return Thing(i, "png", encoded(picture(i), "PNG"), b"picture %d" % i)


def things() -> list[Thing]:
    """Good ones of all kinds, then one of each defect of contents."""
    made = [plain(0)]
    for i, (ending, make) in enumerate(GOOD.values(), 1):
        made.append(Thing(i, ending, make(i), b"picture %d" % i))
    for i, (name, (_, ending, bad_picture, bad_caption)) in enumerate(DEFECTS.items(), 100):
        image = (bad_picture or GOOD["png"][1])(i)
        if name in COPIES:  # of the first one
            image = encoded(picture(0), "PNG" if name == COPIES[0] else "BMP")
        caption = None if name == "no caption" else (bad_caption or (lambda i: b"picture %d" % i))(i)
        made.append(Thing(i, ending, image, caption, name))
    return made
