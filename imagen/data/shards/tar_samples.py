"""Group the members of a tar into samples.

Members `KEY.EXT`, where KEY extends to the first dot of the base name, form one sample wherever they are in the tar.
Members that could give an image another image's caption go to `invalid_members`, each with a reason.
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
    """A member, or a sample, that cannot be used."""

    key: str
    reason: str
    detail: str


@dataclass
class TarScan:
    """The contents of a tar."""

    samples: dict[str, MemberRanges] = field(default_factory=dict)  # by key, in the order of their first members
    invalid_members: list[InvalidMember] = field(default_factory=list)
    non_files: dict[str, str] = field(default_factory=dict)  # by sample key: members that are links, pipes, ...
    problem: str | None = None  # why the tar is incomplete; None if it is complete
    truncated_member: tuple[str, str] | None = None  # key and extension of a member that the end of the file cuts


class _FoundMember(NamedTuple):
    position: int  # among all members
    extension: str  # as written
    span: tuple[int, int]  # offset, size


def scan_tar(tar: str | Path) -> TarScan:
    """Scan a WebDataset tar, reading only its headers.

    Raises UserError naming the tar if it is missing or cannot be read.
    """
    scan = TarScan()
    found: dict[str, list[_FoundMember]] = {}
    non_files: dict[str, list[str]] = {}
    try:
        with open_regular(tar) as file:
            for position, member in enumerate(members(file)):
                _classify(member, position, scan, found, non_files)
    except DamagedTar as damage:
        scan.problem = str(damage)
        match = MEMBER.match(_text(damage.name)) if damage.name else None
        scan.truncated_member = (match[1], match[2].lower()) if match else None
    except FileNotFoundError:
        raise UserError(f"{tar} is missing; restore it or give another folder") from None
    except OSError as error:
        raise UserError(f"cannot read {tar}: {error.strerror or error}") from None
    _group(scan, found)
    for key, details in non_files.items():
        if key in scan.samples:
            scan.non_files[key] = ", ".join(details)
        else:
            scan.invalid_members.append(InvalidMember(key, "unreadable file", ", ".join(details)))
    return scan


def _classify(
    member: Member, position: int, scan: TarScan, found: dict[str, list[_FoundMember]], non_files: dict[str, list[str]]
) -> None:
    name = _text(member.name)
    if member.kind == "a folder" or name.rpartition("/")[2].startswith("."):
        return
    match = MEMBER.match(name)
    if member.kind != "a file":
        non_files.setdefault(match[1] if match else name, []).append(f"{name} is {member.kind}, not a file")
    elif match is None:
        scan.invalid_members.append(
            InvalidMember(name, "broken row", "the member's name has no extension; members are named KEY.EXT")
        )
    else:
        found.setdefault(match[1], []).append(_FoundMember(position, match[2], (member.offset, member.size)))


def _text(name: bytes) -> str:
    """Decode a member's name; bytes that are not UTF-8 are escaped as \\xe9, because an index stores UTF-8."""
    return name.decode("utf-8", "backslashreplace")


def _group(scan: TarScan, found: dict[str, list[_FoundMember]]) -> None:
    """Sort the members of each key into `scan.samples`, or ambiguous ones into `scan.invalid_members`."""
    samples: list[tuple[int, str, MemberRanges]] = []
    for name, all_members in found.items():
        for key, found_members in _by_dotted_name(name, all_members).items():
            groups = _split_at_repeats(found_members)
            if all(list(ranges) == list(groups[0][1]) for _, ranges in groups):
                keys = [key, *(_unused_key(f"{key}~{number}", found) for number in range(2, len(groups) + 1))]
                samples += [(position, k, ranges) for k, (position, ranges) in zip(keys, groups, strict=True)]
                continue
            counts = Counter(member.extension.lower() for member in found_members)
            listed = ", ".join(f"{count} {extension}" for extension, count in counts.items())
            detail = f"its members ({listed}) cannot be assigned to samples; give each sample a unique name"
            scan.invalid_members += [InvalidMember(key, "repeated key", detail)] * max(counts.values())
    scan.samples = {key: ranges for _, key, ranges in sorted(samples, key=lambda sample: sample[0])}


def _split_at_repeats(found_members: Iterable[_FoundMember]) -> list[tuple[int, MemberRanges]]:
    """Split members with one name where an extension repeats (in any case): [(position of the first, members), ...]."""
    groups: list[tuple[int, MemberRanges]] = []
    for member in found_members:
        extension = member.extension.lower()
        if not groups or extension in groups[-1][1]:
            groups.append((member.position, {}))
        groups[-1][1][extension] = member.span
    return groups


def _by_dotted_name(name: str, found_members: list[_FoundMember]) -> dict[str, list[_FoundMember]]:
    """Group the members of `name` by key: pairs like a.v2.jpg and a.v2.txt have the key a.v2, all others a."""
    endings: dict[str, set[str]] = {}
    for member in found_members:
        stem, _, ending = member.extension.rpartition(".")
        endings.setdefault(stem, set()).add(ending.lower())
    texts = {"txt"} if endings.get("", set()) & PICTURES else {"txt", "json"}
    pairs = {stem for stem, of in endings.items() if stem and of & texts and of & PICTURES}
    groups: dict[str, list[_FoundMember]] = {}
    for member in found_members:
        stem, _, ending = member.extension.rpartition(".")
        if stem in pairs:
            groups.setdefault(f"{name}.{stem}", []).append(member._replace(extension=ending))
        else:
            groups.setdefault(name, []).append(member)
    return groups


def _unused_key(key: str, taken: dict[str, list[_FoundMember]]) -> str:
    while key in taken:
        key += "~"
    return key
