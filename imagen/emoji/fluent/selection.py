"""Select the drawings of a data set, of its recogniser and of its evaluation, from the same command-line options."""

import argparse
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from imagen.emoji.fluent import catalogue
from imagen.emoji.fluent.catalogue import GENDERS, PERSON, Drawing, Source
from imagen.emoji.picture import hashed
from imagen.emoji.presets import MINILM
from imagen.errors import check_number
from imagen.text.encoder import load_text_encoder


@dataclass(frozen=True, kw_only=True)
class Selection:
    """Which drawings are used."""

    source: Source
    words: int = 2  # maximum number of words of a thing's name; 1 includes "red apple", which people call "apple"
    common: bool = False  # only things whose names consist of common words (`common_words`)
    faces: bool = True  # include smileys and hearts
    roles: Sequence[str] = ("person-role",)  # Unicode's subgroups of people
    genders: Sequence[str] = (*GENDERS, PERSON)  # of people; "person" is drawn almost like "man" in many roles
    limit: int | None = None  # use a fixed selection of this many things and faces, shortest names first

    def things(self) -> list[Drawing]:
        """Return things and, with `faces`, faces: shuffled, shortest names in words first. Raises UserError."""
        if self.limit is not None:
            check_number("limit", self.limit, least=1)
        found = [
            *catalogue.things(self.source, self.words),
            *(catalogue.faces(self.source) if self.faces else []),
        ]
        if self.common:
            known = common_words({word for each in found for word in each.name.split()})
            found = [each for each in found if known.issuperset(each.name.split())]
        shuffled = sorted(found, key=lambda each: (each.words, hashed("fluent things", each.icon)))
        return shuffled if self.limit is None else shuffled[: self.limit]

    def people(self) -> list[Drawing]:
        """Return the people of `roles`, in these genders and every skin tone. Raises UserError."""
        return catalogue.people(self.source, self.roles, self.genders)


def common_words(words: Collection[str]) -> set[str]:
    """Return those of `words` that are one token of the embedded text encoder: "pizza", but not "alembic".

    Its vocabulary has 30,000 common words and parts of words. Raises UserError if the encoder is missing.
    """
    words = list(words)
    empty, *lengths = load_text_encoder(MINILM).lengths(["", *words])
    return {word for word, length in zip(words, lengths, strict=True) if length == empty + 1}


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that `selection` reads."""
    parser.add_argument("--icons", type=Path, required=True, help="icons.json of @iconify-json/fluent-emoji")
    parser.add_argument("--names", type=Path, required=True, help="folder of emojibase-data")
    parser.add_argument(
        "--words",
        type=int,
        default=2,
        help="maximum number of words in the names of things (1: and those with a shortcode of one word)",
    )
    parser.add_argument(
        "--common", action="store_true", help="only things whose names are common words: one token of the text encoder"
    )
    parser.add_argument("--no-faces", action="store_true", help="exclude smileys and hearts")
    parser.add_argument("--roles", nargs="*", default=["person-role"], help="Unicode subgroups of people")
    parser.add_argument(
        "--genders",
        nargs="+",
        default=[*GENDERS, PERSON],
        choices=[*GENDERS, PERSON],
        help="of people (default: man woman person); without person, some captions name no gender",
    )
    parser.add_argument("--limit", type=int, help="use only this many things and faces")


def selection(options: argparse.Namespace) -> Selection:
    """Return the drawings that the options of a command select."""
    return Selection(
        source=Source(str(options.icons.resolve()), str(options.names.resolve())),
        words=options.words,
        common=options.common,
        faces=not options.no_faces,
        roles=tuple(options.roles),
        genders=tuple(options.genders),
        limit=options.limit,
    )
