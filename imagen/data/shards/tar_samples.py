"""Which members of a tar make a sample, and which make none.

Members `KEY.EXT`, KEY up to the first dot of the base name, belong together wherever they stand. Where that would give
a picture the caption of another, they are in no sample but in `invalid_members`, each with its reason.
"""

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from imagen.data.shards.tar import DamagedTar, Member, members
from imagen.errors import UserError
from imagen.files import open_regular
from imagen.pictures.names import PICTURES

# As WebDataset splits names: a directory belongs to the key; hidden files ("._x.jpg") belong to no sample.
MEMBER = re.compile(r"^((?:.*/)?[^./][^./]*)\.([^/]+)$", re.DOTALL)

MemberRanges = dict[str, tuple[int, int]]  # extension: (offset, size)


class InvalidMember(NamedTuple):
    """Something that looks like a sample or a part of one, and is none."""

    key: str
    reason: str
    detail: str


@dataclass
class TarScan:
    """What a tar holds."""

    samples: dict[str, MemberRanges] = field(default_factory=dict)  # by key, in the order of their first members
    invalid_members: list[InvalidMember] = field(default_factory=list)
    odd: dict[str, str] = field(default_factory=dict)  # keys of samples: their members that are links, pipes, ...
    problem: str | None = None  # why the tar is not whole
    cut: tuple[str, str] | None = None  # key and extension of a member that does not end in the file


class _Found(NamedTuple):
    place: int  # among all members
    extension: str  # as written
    where: tuple[int, int]


def scan_tar(tar: str | Path) -> TarScan:
    """What a WebDataset tar holds, from its headers alone.

    Raises UserError naming the tar when it is missing or cannot be read.
    """
    scan = TarScan()
    found: dict[str, list[_Found]] = {}
    odd: dict[str, list[str]] = {}
    try:
        with open_regular(tar) as file:
            for place, member in enumerate(members(file)):
                _sort_in(member, place, scan, found, odd)
    except DamagedTar as damage:
        scan.problem = str(damage)
        match = MEMBER.match(_text(damage.name)) if damage.name else None
        scan.cut = (match[1], match[2].lower()) if match else None
    except FileNotFoundError:
        raise UserError(f"{tar} is missing; restore it or give another folder") from None
    except OSError as error:
        raise UserError(f"cannot read {tar}: {error.strerror or error}") from None
    _group(scan, found)
    for key, details in odd.items():
        if key in scan.samples:
            scan.odd[key] = ", ".join(details)
        else:
            scan.invalid_members.append(InvalidMember(key, "unreadable file", ", ".join(details)))
    return scan


def _sort_in(
    member: Member, place: int, scan: TarScan, found: dict[str, list[_Found]], odd: dict[str, list[str]]
) -> None:
    name = _text(member.name)
    if member.kind == "a folder" or name.rpartition("/")[2].startswith("."):
        return
    match = MEMBER.match(name)
    if member.kind != "a file":
        odd.setdefault(match[1] if match else name, []).append(f"{name} is {member.kind}, not a file")
    elif match is None:
        scan.invalid_members.append(
            InvalidMember(name, "broken row", "a member whose name has no ending; a sample's are KEY.EXT")
        )
    else:
        found.setdefault(match[1], []).append(_Found(place, match[2], (member.offset, member.size)))


def _text(name: bytes) -> str:
    """A member's name. Bytes that are not UTF-8 are written as an index can hold them: \\xe9."""
    return name.decode("utf-8", "backslashreplace")


def _group(scan: TarScan, found: dict[str, list[_Found]]) -> None:
    """Sort the members of each key into `scan.samples`, or `scan.invalid_members` where they are ambiguous."""
    samples: list[tuple[int, str, MemberRanges]] = []
    for name, all_members in found.items():
        for key, some in _by_dotted_name(name, all_members).items():
            sets = _sets(some)
            if all(list(places) == list(sets[0][1]) for _, places in sets):
                keys = [key, *(_free(f"{key}~{number}", found) for number in range(2, len(sets) + 1))]
                samples += [(place, k, places) for k, (place, places) in zip(keys, sets, strict=True)]
                continue
            counts = Counter(member.extension.lower() for member in some)
            what = ", ".join(f"{count} {extension}" for extension, count in counts.items())
            detail = f"its members ({what}) do not say what belongs together; give each sample a name of its own"
            scan.invalid_members += [InvalidMember(key, "repeated key", detail)] * max(counts.values())
    scan.samples = {key: places for _, key, places in sorted(samples, key=lambda sample: sample[0])}


def _sets(some: Iterable[_Found]) -> list[tuple[int, MemberRanges]]:
    """The members of one name, cut where an extension comes again (in any case): (place of the first, members)."""
    sets: list[tuple[int, MemberRanges]] = []
    for member in some:
        extension = member.extension.lower()
        if not sets or extension in sets[-1][1]:
            sets.append((member.place, {}))
        sets[-1][1][extension] = member.where
    return sets


def _by_dotted_name(name: str, some: list[_Found]) -> dict[str, list[_Found]]:
    """The members of `name` by key: all, but pairs like a.v2.jpg and a.v2.txt are no masters of `a`."""
    endings: dict[str, set[str]] = {}
    for member in some:
        stem, _, ending = member.extension.rpartition(".")
        endings.setdefault(stem, set()).add(ending.lower())
    texts = {"txt"} if endings.get("", set()) & PICTURES else {"txt", "json"}
    pairs = {stem for stem, of in endings.items() if stem and of & texts and of & PICTURES}
    groups: dict[str, list[_Found]] = {}
    for member in some:
        stem, _, ending = member.extension.rpartition(".")
        if stem in pairs:
            groups.setdefault(f"{name}.{stem}", []).append(member._replace(extension=ending))
        else:
            groups.setdefault(name, []).append(member)
    return groups


def _free(key: str, taken: dict[str, list[_Found]]) -> str:
    while key in taken:
        key += "~"
    return key
