"""A zip of images."""

import json
import zipfile

import pytest
from corpus import encoded, picture

from imagen.data.build.dataset import build
from imagen.data.shards.dataset import open_split
from imagen.data.sources import open_source
from imagen.errors import UserError


def write(path, members):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


def image(i):
    return encoded(picture(i), "PNG")


def read(path, **options):
    source = open_source(path, **options)
    return {record.key: record for part in source.parts() for record in source.read(part)}


def test_captions_beside_the_images(tmp_path):
    path = write(
        tmp_path / "photos.zip",
        {
            "photos/": b"",
            "photos/a.png": image(0),
            "photos/a.txt": "cat",
            "photos/deep/b.PNG": image(1),
            "photos/deep/b.json": json.dumps({"captions": ["dog", "hound"]}),
            "photos/c.png": image(2),
            "photos/d.jpg": b"broken",
            "photos/d.jpg.txt": "bird",
            "__MACOSX/photos/._a.png": b"x",
            "photos/.hidden.png": image(3),
        },
    )
    records = read(path, records_per_part=2)
    assert {key: (record.caption, record.further) for key, record in records.items()} == {
        "photos/a": (b"cat", ()),
        "photos/deep/b": ("dog", ("hound",)),
        "photos/c": (None, ()),
        "photos/d": (b"bird", ()),
    }
    assert records["photos/deep/b"].image == image(1)
    result = build(path, tmp_path / "shards", progress=False, workers=1)
    assert result["samples"] == 2 and result["rejected"] == {"missing caption": 1, "not a picture": 1}
    assert open_split(tmp_path / "shards").captions(1) == ["dog", "hound"]


@pytest.mark.parametrize("name", ["metadata.csv", "metadata.jsonl", "labels.tsv"])
def test_captions_in_a_table(tmp_path, name):
    rows = [("images/0.png", "zero"), ("images/1.png", "one, two"), ("images/0.png", "nought"), ("images/9.png", "x")]
    if name.endswith("jsonl"):
        table = "".join(json.dumps({"file_name": file, "text": text}) + "\n" for file, text in rows)
    else:
        mark = "," if name.endswith("csv") else "\t"
        quote = '"' if mark == "," else ""
        table = f"file_name{mark}text\r\n" + "".join(f"{file}{mark}{quote}{text}{quote}\r\n" for file, text in rows)
    members = {f"set/images/{i}.png": image(i) for i in range(3)}
    records = read(write(tmp_path / "set.zip", members | {f"set/{name}": table}))
    good = {key: (record.caption, record.further) for key, record in records.items() if record.problem is None}
    assert good == {"set/images/0": ("zero", ("nought",)), "set/images/1": ("one, two", ())}
    assert sorted(record.problem for record in records.values() if record.problem is not None) == [
        ("missing caption", f"no row of set/{name} names it"),
        ("missing file", "set/images/9.png is not in the archive"),
    ]


def test_equal_stems_and_hostile_names_get_safe_keys(tmp_path):
    names = ("../../up.png", "/abs.png", "a.png", "a.webp", "name with space.png")
    records = read(write(tmp_path / "odd.zip", {name: image(i) for i, name in enumerate(names)}))
    assert len(records) == 4  # the first one counts as hidden
    assert all(".." not in key and not key.startswith("/") for key in records)


def test_damage_is_a_rejected_record_or_one_line(tmp_path):
    path = write(tmp_path / "a.zip", {f"{i}.png": image(i) for i in range(3)} | {f"{i}.txt": "x" for i in range(3)})
    data = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        data[archive.getinfo("1.png").header_offset + 60] ^= 255
    path.write_bytes(data)
    problems = {key: record.problem for key, record in read(path).items() if record.problem}
    assert list(problems) == ["1"] and problems["1"][0] == "unreadable file"
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(UserError, match=r"a\.zip is not a complete zip file"):
        read(path)
    with pytest.raises(UserError, match="contains no images"):
        read(write(tmp_path / "empty.zip", {"a.txt": "x"}))
    with pytest.raises(UserError, match="line 1 is not a JSON object"):
        read(write(tmp_path / "bad.zip", {"0.png": image(0), "metadata.jsonl": "x\n"}))
