"""Provide a small set of drawings with names and groups like those of Fluent Emoji."""

import json

import pytest

from imagen.emoji.fluent.catalogue import TONES, Source, slug

GROUPS = {
    "groups": {"0": "smileys-emotion", "1": "people-body", "3": "animals-nature", "7": "objects", "8": "symbols"},
    "subgroups": {
        "0": "face-smiling",
        "15": "emotion",
        "25": "person-role",
        "26": "person-fantasy",
        "34": "animal-mammal",
        "58": "time",
        "65": "clothing",
        "85": "arrow",
    },
}
# (label, group, subgroup, has skin tones)
ENTRIES = [
    ("winking face", 0, 0, False),
    ("anger symbol", 0, 15, False),
    *((f"{who}{role}", 1, 25, True) for role in ("astronaut", "cook") for who in ("", "man ", "woman ")),
    *((f"{who} wearing turban", 1, 25, True) for who in ("person", "man", "woman")),
    *((f"{who}fairy", 1, 26, True) for who in ("", "man ", "woman ")),
    ("ninja", 1, 25, True),
    ("horse", 3, 34, False),
    ("octopus", 3, 34, False),
    ("T-Rex", 3, 34, False),
    ("woman’s hat", 7, 65, False),
    ("glasses", 7, 65, False),
    ("automobile", 7, 65, False),
    ("two-thirty", 7, 58, False),
    ("one o’clock", 7, 58, False),
    ("left arrow", 8, 85, False),
    ("phoenix", 3, 34, False),  # not among the drawings
]


def body(colour: str) -> str:
    """Return the SVG of a disc with half the width of its square, in the centre."""
    return f'<circle cx="16" cy="16" r="8" fill="{colour}"/>'


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Source:
    """Return the paths of the two packages, written with the entries above."""
    folder = tmp_path_factory.mktemp("fluent")
    (folder / "names" / "en").mkdir(parents=True)
    (folder / "names" / "en" / "shortcodes").mkdir()
    (folder / "names" / "meta").mkdir()
    icons = {}
    data = []
    for order, (label, group, subgroup, tones) in enumerate(ENTRIES):
        entry: dict[str, object] = {
            "label": label,
            "group": group,
            "subgroup": subgroup,
            "order": order,
            "hexcode": f"1F{order:03}",
        }
        name = slug(label)
        if "fairy" in label and " " not in label:
            name = f"person-{name}"  # the name in Fluent Emoji
        if label != "phoenix":
            icons[name] = {"body": body("#00ff00")}
        if tones:
            entry["skins"] = [{"label": f"{label}: {tone}", "tone": n + 1} for n, tone in enumerate(TONES)]
            entry["skins"].append({"label": "two tones", "tone": [1, 2]})  # like that of people holding hands
            icons |= {f"{name}-{tone}": {"body": body("#00ff00")} for tone in TONES}
        data.append(entry)
    data.append({"label": "regional indicator A"})
    (folder / "icons.json").write_text(json.dumps({"icons": icons, "width": 32, "height": 32}))
    (folder / "info.json").write_text(json.dumps({"name": "Fluent", "license": {"spdx": "MIT"}}))
    (folder / "names" / "en" / "data.json").write_text(json.dumps(data))
    (folder / "names" / "en" / "shortcodes" / "emojibase.json").write_text("{}")
    (folder / "names" / "meta" / "groups.json").write_text(json.dumps(GROUPS))
    return Source(str(folder / "icons.json"), str(folder / "names"))
