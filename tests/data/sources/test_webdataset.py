"""Test WebDataset tars as a source."""

import io
import json
import os
import tarfile

import pytest
from corpus import encoded, picture
from reading import encoded_images, problems, read_records

from imagen.data.build.dataset import build
from imagen.data.shards.dataset import ShardedDataset
from imagen.data.shards.index import index_shard
from imagen.data.sources import open_source
from imagen.errors import UserError


def write_tar(path, members):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def sample_members(first, count):
    """Yield members as img2dataset writes them: an image, JSON and text under each key."""
    for i, data in enumerate(encoded_images(first + count)[first:], first):
        yield f"{i:09d}.jpg", data
        yield f"{i:09d}.json", json.dumps({"caption": f"json {i}", "width": 5}).encode()
        yield f"{i:09d}.txt", f"caption {i}".encode()


def test_tars_are_read_in_place_in_the_order_of_their_index(tmp_path):
    write_tar(tmp_path / "00000.tar", sample_members(0, 3))
    write_tar(tmp_path / "00001.tar", sample_members(3, 2))
    (tmp_path / "00000.parquet").write_bytes(b"img2dataset's table of addresses")
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    source = open_source(tmp_path)  # recognised
    assert source.in_place and [source.tar(part) for part in source.parts()] == sorted(tmp_path.glob("*.tar"))
    records = read_records(tmp_path, "webdataset")
    assert [(r.image, r.caption) for r in records] == [
        (p, f"caption {i}".encode()) for i, p in enumerate(encoded_images(5))
    ]
    assert (records[3].key, records[3].origin) == ("00001/000000003", "00001.tar, 000000003")
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before

    for tar in tmp_path.glob("*.tar"):
        index_shard(tar)
    data = ShardedDataset(tmp_path)
    assert [data.key(i) for i in range(len(data))] == [r.key.split("/")[1] for r in records]
    assert [data.read(i, "jpg") for i in range(len(data))] == [r.image for r in records]


def test_captions_image_sizes_and_names_of_any_kind_are_read(tmp_path):
    a, b, c, d = encoded_images(4)
    members = [
        ("x.64.png", a),
        ("y.JPG", c),  # members of a sample need not be adjacent
        ("x.256.png", b),
        ("x.json", b'{"text": "from json"}'),
        ("./dir.d/ü.webp", d),
        ("y.txt", b"\xff"),
        ("._y.jpg", b"hidden"),
    ]
    write_tar(tmp_path / "train" / "a b.tar", members)
    write_tar(tmp_path / "heldout" / "0.tar", [("x.png", a)])
    x, y, u, held = read_records(tmp_path)
    assert (x.image, x.caption) == (b, "from json") and (y.image, y.caption) == (c, b"\xff")
    assert (u.image, u.caption) == (d, None) and "ü" in u.origin
    assert (held.key, held.image) == ("heldout/0/x", a)


def test_faulty_samples_have_reasons(tmp_path):
    (picture,) = encoded_images(1)
    members = [
        ("good.jpg", picture),
        ("nothing.txt", b"a caption and no picture"),
        ("json.jpg", picture),
        ("json.json", b"{"),
        ("gif.gif", picture),  # training cannot read it in place, but a copy converts it
    ]
    write_tar(tmp_path / "0.tar", members)
    records = read_records(tmp_path / "0.tar")
    assert problems(records) == {
        "0.tar, nothing": "missing file",
        "0.tar, json": "unreadable file",
    }
    assert records[3].image == picture
    assert records[1].caption == b"a caption and no picture"


def test_a_truncated_tar_gives_its_complete_samples_and_one_problem(tmp_path):
    write_tar(tmp_path / "whole.tar", sample_members(0, 4))
    whole = (tmp_path / "whole.tar").read_bytes()
    good = read_records(tmp_path / "whole.tar")
    with tarfile.open(tmp_path / "whole.tar") as tar:
        # The end of each sample: a header and one block per member.
        ends = [member.offset_data + 512 for member in tar][2::3]
    tar = tmp_path / "cut" / "whole.tar"
    tar.parent.mkdir()
    for cut in range(0, ends[-1] + 512, 100):
        tar.write_bytes(whole[:cut])
        records = read_records(tar, "webdataset", part_sizes=(1,))
        arrived = records[:-1]
        # The padding of the last block may be missing; the sample is still complete.
        assert len(arrived) in {sum(end <= cut for end in ends), sum(end - 512 + 9 <= cut for end in ends)}
        assert [(r.key, r.image, r.caption) for r in arrived] == [
            (r.key, r.image, r.caption) for r in good[: len(arrived)]
        ]
        assert problems(records) == {"whole.tar": "broken tar"}


def test_a_damaged_header_ends_the_tar(tmp_path):
    write_tar(tmp_path / "0.tar", sample_members(0, 4))
    with tarfile.open(tmp_path / "0.tar") as tar:
        offset = tar.getmembers()[6].offset
    with open(tmp_path / "0.tar", "r+b") as file:
        file.seek(offset)
        file.write(os.urandom(512))
    records = read_records(tmp_path / "0.tar")
    assert len(records) == 3 and problems(records) == {"0.tar": "broken tar"}


def test_unusable_tars_are_a_one_line_error(tmp_path):
    with pytest.raises(UserError, match="contains no tars"):
        open_source(tmp_path, "webdataset").parts()
    write_tar(tmp_path / "0.tar", sample_members(0, 1))
    source = open_source(tmp_path)
    (part,) = source.parts()
    (tmp_path / "0.tar").unlink()
    with pytest.raises(UserError, match=r"0\.tar is missing"):
        list(source.read(part))


def test_captions_in_other_members_require_copying(tmp_path):
    a, b, c = encoded_images(3)
    members = [("a.jpg", a), ("a.caption", b"of a"), ("b.jpg", b), ("b.TEXT", b"of b"), ("c.jpg", c), ("c.cls", b"7")]
    write_tar(tmp_path / "0.tar", [*members, ("a.json", b'{"caption": "no"}')])
    assert [r.caption for r in read_records(tmp_path)] == [b"of a", b"of b", None]


def test_a_cut_sample_at_the_front_does_not_shift_the_others(tmp_path):
    """Members of a sample need not be adjacent, so the cut member may belong to any sample."""
    pictures = [encoded(picture(i), "JPEG") for i in range(4)]
    members = [("a.txt", b"caption a")]
    for key, data in zip("bcd", pictures, strict=False):
        members += [(f"{key}.jpg", data), (f"{key}.txt", f"caption {key}".encode())]
    write_tar(tmp_path / "0.tar", [*members, ("a.jpg", pictures[3])])
    with tarfile.open(tmp_path / "0.tar") as tar:
        os.truncate(tmp_path / "0.tar", tar.getmember("a.jpg").offset_data + 600)
    result = build(tmp_path, workers=1, progress=False)
    data = ShardedDataset(tmp_path)
    assert [(data.key(i), data.caption(i)) for i in range(len(data))] == [(k, f"caption {k}") for k in "bcd"]
    assert result["rejected"] == {"broken tar": 1}


def test_a_byte_order_mark_is_not_part_of_a_caption(tmp_path):
    members = [
        ("a.png", encoded(picture(0), "PNG")),
        ("a.txt", b"\xef\xbb\xbfa cat"),
        ("a.json", b'{"captions": ["a cat"]}'),
    ]
    write_tar(tmp_path / "0.tar", members)
    assert build(tmp_path, workers=1, progress=False)["captions"] == 1
    assert ShardedDataset(tmp_path).captions(0) == ["a cat"]
