"""Test image folders as a source."""

import json
import os
import shutil

import pytest
from reading import encoded_images, problems, read_records

from imagen.data.sources import open_source
from imagen.errors import UserError


def write_file(path, data):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def test_images_at_any_depth_have_their_caption_beside_them(tmp_path):
    a, b, c, d, e = encoded_images(5)
    write_file(tmp_path / "b" / "cat.JPG", a)
    write_file(tmp_path / "b" / "cat.txt", "eine Kätzin\n".encode())
    write_file(tmp_path / "dog.webp", b)
    write_file(tmp_path / "dog.json", json.dumps({"text": "no", "caption": "a dog"}).encode())
    write_file(tmp_path / "dir.d" / "deep" / "1.png", c)
    write_file(tmp_path / "dir.d" / "deep" / "1.json", json.dumps({"width": 5, "text": "one"}).encode())
    write_file(tmp_path / "z.gif", d)
    write_file(tmp_path / "two.tif", e)
    write_file(tmp_path / "two.json", b"{}")
    write_file(tmp_path / "two.txt", b"\xff not UTF-8")
    write_file(tmp_path / "notes.md", b"no picture")
    records = read_records(tmp_path, "folder")
    assert [(r.origin, r.image, r.caption) for r in records] == [
        ("b/cat.JPG", a, "eine Kätzin\n".encode()),
        ("dir.d/deep/1.png", c, "one"),
        ("dog.webp", b, "a dog"),
        ("two.tif", e, b"\xff not UTF-8"),
        ("z.gif", d, None),
    ]
    assert [r.key for r in records][0::2] == ["b/cat", "dog", "z"]
    assert open_source(tmp_path).parts() == open_source(tmp_path, "folder").parts()  # recognised


def test_keys_are_safe_and_differ_for_different_names(tmp_path):
    names = [
        "a b.png",
        "a_b.png",
        "a.b.png",
        "é.png",
        "x.png",
        "x.jpg",
        "x.jpg.png",
        "x/y.png",
        "x_/y.png",
        "-.png",
        "n" * 251 + ".png",
    ]
    for name in names:
        write_file(tmp_path / name, b"p")
    made = next(r.key for r in read_records(tmp_path, "folder") if r.origin == "a b.png")
    write_file(tmp_path / f"{made}.png", b"p")  # the keys of an earlier build as file names
    records = read_records(tmp_path, "folder")  # checks that keys are safe and unique
    assert len(records) == len(names) + 1
    keys = {r.origin: r.key for r in records}
    assert (keys["a_b.png"], keys["x/y.png"], keys["a b.png"]) == ("a_b", "x/y", made)


def test_hidden_files_are_skipped_and_link_loops_end(tmp_path):
    root = tmp_path / "root"
    write_file(root / "a" / "1.png", b"1")
    write_file(root / ".hidden" / "2.png", b"2")
    write_file(root / "a" / "._1.png", b"3")
    write_file(tmp_path / "elsewhere" / "4.png", b"4")
    (root / "a" / "up").symlink_to(root)
    (root / "a" / "self").symlink_to(root / "a")
    (root / "b").symlink_to(tmp_path / "elsewhere")
    (root / "c.png").symlink_to(tmp_path / "elsewhere" / "4.png")
    assert [(r.key, r.image) for r in read_records(root, "folder")] == [("a/1", b"1"), ("b/4", b"4"), ("c", b"4")]


def test_faulty_pairs_have_reasons(tmp_path):
    for name in ("good", "gone", "json", "list", "nocaption"):
        write_file(tmp_path / f"{name}.png", b"p")
    (tmp_path / "dangling.png").symlink_to(tmp_path / "nowhere")
    write_file(tmp_path / "json.json", b"{not")
    write_file(tmp_path / "list.json", b"[1]")
    (tmp_path / "nocaption.txt").mkdir()
    write_file(tmp_path / "dangling.txt", b"kept")
    source = open_source(tmp_path)
    (part,) = source.parts()
    (tmp_path / "gone.png").unlink()
    records = list(source.read(part))
    assert problems(records) == {
        "dangling.png": "missing file",
        "gone.png": "missing file",
        "json.png": "unreadable file",
        "list.png": "unreadable file",
        "nocaption.png": "unreadable file",
    }
    assert [r.origin for r in records if r.image] == ["good.png"]
    assert records[0].caption == b"kept"
    shutil.rmtree(tmp_path)
    with pytest.raises(UserError, match="no longer exists"):
        list(source.read(part))


def test_names_that_are_not_utf8_are_read(tmp_path):
    try:
        write_file(tmp_path / os.fsdecode(b"caf\xe9.png"), b"p")
    except OSError:
        pytest.skip("this file system requires UTF-8 names")
    write_file(tmp_path / os.fsdecode(b"caf\xe9.txt"), b"coffee")
    (record,) = read_records(tmp_path, "folder")
    assert record.image == b"p" and record.caption == b"coffee" and record.origin.encode()


def test_folders_without_images_are_rejected(tmp_path):
    write_file(tmp_path / "empty" / "readme.txt", b"x")
    with pytest.raises(UserError, match=r"empty contains no images"):
        open_source(tmp_path / "empty", "folder").parts()
    with pytest.raises(UserError, match=r"readme\.txt is not a folder"):
        open_source(tmp_path / "empty" / "readme.txt", "folder").parts()


def test_caption_files_have_the_usual_extensions(tmp_path):
    """The first existing file of .txt, .caption, .text and .json is used; lower case takes precedence."""
    data = encoded_images(1)[0]
    beside = {
        "a": {"a.caption": "a"},
        "b": {"b.TXT": "b"},
        "c": {"c.Text": "c"},
        "d": {"d.JSON": '{"text": "d"}'},
        "e": {"e.txt": "e", "e.caption": "no", "e.TXT": "no", "e.json": "{}"},
        "f": {"f.CAPTION": "f", "f.text": "no", "f.json": "{}"},
        "g.x": {"g.x.caption": "g"},
        "h": {},
    }
    for stem, files in beside.items():
        (tmp_path / f"{stem}.PNG").write_bytes(data)
        for name, text in files.items():
            (tmp_path / name).write_text(text)
    for name in ("alone.caption", "alone2.TXT", "README.TEXT", "deep.caption.md"):
        (tmp_path / name).write_text("x")
    records = read_records(tmp_path)
    found = {r.origin: r.caption.decode() if isinstance(r.caption, bytes) else r.caption for r in records}
    assert found == {f"{stem}.PNG": stem[0] for stem in "abcdef"} | {
        "g.x.PNG": "g", "h.PNG": None, "alone.caption": "x", "alone2.TXT": "x",
    }  # fmt: skip
    assert problems(records) == {"alone.caption": "missing file", "alone2.TXT": "missing file"}


def test_caption_files_may_be_named_after_the_whole_image_name(tmp_path):
    """Some tools write cat.jpg.txt, which also distinguishes images with the same stem."""
    for name in ("cat.jpg", "cat.png", "dog.jpg", "a.b.jpg"):
        (tmp_path / name).write_bytes(b"p")
    for name in ("cat.jpg.txt", "cat.png.TXT", "dog.jpg.caption", "dog.txt", "a.b.txt", "cow.jpg.txt"):
        (tmp_path / name).write_text(name)
    records = read_records(tmp_path)
    captions = {record.origin: record.caption for record in records if record.problem is None}
    assert captions == {
        "cat.jpg": b"cat.jpg.txt",
        "cat.png": b"cat.png.TXT",
        "dog.jpg": b"dog.jpg.caption",
        "a.b.jpg": b"a.b.txt",
    }
    assert problems(records) == {"cow.jpg.txt": "missing file"}


def test_names_of_folders_or_files_can_be_captions(tmp_path):
    data = encoded_images(3)
    names = ["golden_retriever/a_red_ball.png", "animals/tabby cat/2.png", "3__three_.png"]
    for name, image in zip(names, data, strict=True):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(image)
    (tmp_path / "3__three_.txt").write_text("beside it")
    (tmp_path / "animals/alone.txt").write_text("of no picture")
    for caption_from, captions in {
        None: [b"beside it", None, b"of no picture", None],
        "folder": [None, "tabby cat", "golden retriever"],
        "name": ["3 three", "2", "a red ball"],
    }.items():
        records = read_records(tmp_path, caption_from=caption_from)
        assert sorted(map(str, (r.caption for r in records))) == sorted(map(str, captions)), caption_from
    by_picture = {r.image: r.caption for r in read_records(tmp_path, "folder", caption_from="folder")}
    assert by_picture == {data[0]: "golden retriever", data[1]: "tabby cat", data[2]: None}


def test_names_used_as_captions_may_be_invalid_text(tmp_path):
    folder = os.fsencode(tmp_path) + b"/caf\xe9"
    os.mkdir(folder)
    with open(folder + b"/1.png", "wb") as file:
        file.write(encoded_images(1)[0])
    (record,) = read_records(tmp_path, caption_from="folder")
    assert record.caption == b"caf\xe9"  # the bytes on disk, which are rejected later as not UTF-8
