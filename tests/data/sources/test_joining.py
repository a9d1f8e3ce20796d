"""Join several captions of an image, in lists or rows, into one record, independent of how a table is split."""

import csv
import gzip
import json
import random

import pytest
from reading import encoded_images, problems, read_records

from imagen.data.sources import open_source
from imagen.errors import UserError


@pytest.fixture
def folder(tmp_path):
    """Write a folder with img/0.png to img/5.png."""
    (tmp_path / "img").mkdir()
    for i, data in enumerate(encoded_images(6)):
        (tmp_path / f"img/{i}.png").write_bytes(data)
    return tmp_path


def captions(records):
    """Return all captions of good records by image number."""
    numbers = {data: i for i, data in enumerate(encoded_images(6))}
    found = [(numbers[r.image], [r.caption, *r.further]) for r in records if r.problem is None]
    assert len({i for i, _ in found}) == len(found)  # each image occurs once
    return dict(found)


ROWS = [(i, f"caption {j} of {i}") for i in range(6) for j in range(5)]
WANTED = {i: [f"caption {j} of {i}" for j in range(5)] for i in range(6)}


@pytest.mark.parametrize("ending", ["csv", "tsv", "jsonl", "csv.gz", "jsonl.gz"])
@pytest.mark.parametrize("shuffled", [False, True])
def test_rows_of_one_image_are_one_record_wherever_they_are(folder, ending, shuffled):
    rows = list(ROWS)
    if shuffled:
        random.Random(0).shuffle(rows)
    if "jsonl" in ending:
        text = "".join(json.dumps({"image": f"img/{i}.png", "caption": text}) + "\n" for i, text in rows)
    else:
        cut = "\t" if ending == "tsv" else ","
        text = f"image{cut}caption\n" + "".join(f"img/{i}.png{cut}{text}\n" for i, text in rows)
    path = folder / f"t.{ending}"
    path.write_bytes(gzip.compress(text.encode()) if ending.endswith("gz") else text.encode())
    wanted = {i: [text for j, text in rows if j == i] for i in range(6)}
    # Compressed tables are listed without reading them, so only adjacent rows are joined.
    if shuffled and ending.endswith("gz"):
        found = [(r.caption, *r.further) for r in read_records(path)]
        assert sorted(text for some in found for text in some) == sorted(text for _, text in rows)
        return
    assert captions(read_records(path)) == wanted
    separate = read_records(path, join_rows=False)
    assert [(r.caption, r.further) for r in separate] == [(text, ()) for _, text in rows]


def test_an_image_is_identified_by_its_path_across_the_tables_of_a_folder(folder):
    (folder / "a").mkdir()
    (folder / "t.csv").write_text("image,caption\nimg/0.png,one\n./img/../img/0.png,two\nimg/1.png,x\n")
    (folder / "a" / "u.csv").write_text("text,n,file_name\nthree,1,../img/0.png\nfour,2,../img/2.png\n")
    records = read_records(folder, "csv")
    assert captions(records) == {0: ["three", "one", "two"], 1: ["x"], 2: ["four"]}  # a/u.csv comes first
    assert [r.origin for r in records] == ["a/u.csv, line 2 and 2 more with its image", "a/u.csv, line 3",
                                           "t.csv, line 4"]  # fmt: skip


def test_base64_images_are_identified_by_their_contents(tmp_path):
    from base64 import b64encode

    zero, one = (b64encode(data).decode() for data in encoded_images(2))
    (tmp_path / "t.tsv").write_text(f"image_base64\tcaption\n{zero}\ta\n{one}\tb\n{zero}\tc\n")
    assert captions(read_records(tmp_path / "t.tsv")) == {0: ["a", "c"], 1: ["b"]}


def test_rows_without_a_caption_or_with_an_equal_one_are_rejected(folder):
    rows = [
        {"image": "img/0.png"},
        {"image": "img/0.png", "caption": "a"},
        {"image": "img/1.png", "caption": "b"},
        {"image": "img/0.png", "caption": "a"},
        {"image": "img/0.png", "caption": 5},
        {"image": "img/0.png", "caption": None},
        {"image": "img/0.png", "caption": ["a", "c"]},
        {"caption": "no picture"},
        {"image": "", "caption": "an empty path is none of a picture"},
        {"image": "", "caption": "nor is another"},
        {"image": "img/none.png", "caption": "gone"},
        {"image": "img/none.png", "caption": "gone, too"},
    ]
    (folder / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    records = read_records(folder / "t.jsonl")
    assert captions(records) == {0: ["a", "c"], 1: ["b"]}
    assert problems(records) == {
        "t.jsonl, line 1": "broken row",
        "t.jsonl, line 4": "duplicate",
        "t.jsonl, line 5": "broken row",
        "t.jsonl, line 6": "missing caption",
        "t.jsonl, line 8": "broken row",
        "t.jsonl, line 9": "broken row",
        "t.jsonl, line 10": "broken row",
        "t.jsonl, line 11 and 1 more with its image": "missing file",
    }


def test_a_table_that_changed_after_listing_gives_no_captions(folder):
    (folder / "t.csv").write_text("image,caption\nimg/0.png,a\nimg/1.png,b\nimg/0.png,c\n")
    source = open_source(folder / "t.csv")
    (part,) = source.parts()
    (folder / "t.csv").write_text("image,caption\nimg/0.png,a\nimg/1.png,b\nimg/2.png,c\n")
    records = list(source.read(part))
    assert captions(records) == {0: ["a"], 1: ["b"]}
    assert problems(records) == {"t.csv, line 4": "unreadable file"}


def test_lists_of_captions_are_read(folder):
    lists = [
        ["a", "b"],
        [{"raw": "from Karpathy's", "tokens": ["from"]}, {"caption": "from COCO's", "id": 7}],
        [],
        ["a", None, ""],
        ["a", 5],
        {"raw": "one sentence"},
    ]
    rows = [{"image": f"img/{i}.png", "captions": some} for i, some in enumerate(lists)]
    (folder / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    records = read_records(folder / "t.jsonl")
    assert captions(records) == {0: ["a", "b"], 1: ["from Karpathy's", "from COCO's"], 2: [None], 3: ["a", None, ""],
                                 5: ["one sentence"]}  # fmt: skip
    assert problems(records) == {"t.jsonl, line 5": "broken row"}


def test_json_files_beside_images_hold_captions(tmp_path):
    objects = [{"caption": "one"}, {"captions": ["one", "two"]}, {"caption": ["one", "two"]}, {"captions": []}]
    for i, (data, value) in enumerate(zip(encoded_images(4), objects, strict=True)):
        (tmp_path / f"{i}.png").write_bytes(data)
        (tmp_path / f"{i}.json").write_text(json.dumps(value))
    assert captions(read_records(tmp_path)) == {0: ["one"], 1: ["one", "two"], 2: ["one", "two"], 3: [None]}


def test_lists_and_adjacent_rows_of_arrow_tables_are_joined(tmp_path):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    images = encoded_images(6)
    lists = pa.table({"image": images, "caption": list(WANTED.values())})
    pq.write_table(lists, tmp_path / "lists.parquet")
    assert captions(read_records(tmp_path / "lists.parquet")) == WANTED
    struct = pa.array([{"bytes": images[i], "path": f"{i}.png"} for i, _ in ROWS])
    rows = pa.table({"image": struct, "sentences": [{"raw": text} for _, text in ROWS]})
    pq.write_table(rows, tmp_path / "rows.parquet", row_group_size=15)
    assert captions(read_records(tmp_path / "rows.parquet", part_sizes=(1, 2, 7, 1000))) == WANTED
    assert len(read_records(tmp_path / "rows.parquet", join_rows=False)) == 30

    bad = pa.Array.from_buffers(pa.string(), 2, [None, pa.array(["ab", "c"]).buffers()[1], pa.py_buffer(b"\xff\xfec")])
    table = pa.table({"image": images[:1], "caption": pa.ListArray.from_arrays([0, 2], bad)})
    pq.write_table(table, tmp_path / "bad.parquet")
    assert captions(read_records(tmp_path / "bad.parquet")) == {0: [b"\xff\xfe", "c"]}


def test_adjacent_rows_of_a_saved_dataset_are_joined(tmp_path):
    pa = pytest.importorskip("pyarrow")
    images = encoded_images(6)
    table = pa.table({"image": [images[i] for i, _ in ROWS], "caption": [text for _, text in ROWS]})
    (tmp_path / "state.json").write_text(json.dumps({"_data_files": [{"filename": "data-0.arrow"}]}))
    with pa.OSFile(str(tmp_path / "data-0.arrow"), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table, max_chunksize=4)
    assert captions(read_records(tmp_path, "huggingface", part_sizes=(1, 3, 8, 1000))) == WANTED


@pytest.mark.parametrize("ending, cut", [("csv", ","), ("tsv", "\t")])
def test_a_json_list_in_a_cell_is_read(folder, ending, cut):
    cells = [json.dumps(["a, b", 'c "d"']), "[]", '["cut', "[a photo]", "[1, 2]", '["quoted"] and more']
    with open(folder / f"t.{ending}", "w", newline="") as file:
        rows = csv.writer(file, delimiter=cut)
        rows.writerow(["image", "caption"])
        rows.writerows((f"img/{i}.png", cell) for i, cell in enumerate(cells))
    found = captions(read_records(folder / f"t.{ending}"))
    assert found == {0: ["a, b", 'c "d"']} | {i: [cell] for i, cell in enumerate(cells) if i}


@pytest.mark.parametrize(
    "cell, wanted",
    [
        (repr(["one", "it's", 'say "c"', "d\\é\n"]), ["one", "it's", 'say "c"', "d\\é\n"]),
        ("['one']", ["one"]),
        ("['a' 'b']", ["['a' 'b']"]),  # as NumPy prints it
        ("['\\x']", ["['\\x']"]),
        ("['a', len('b')]", ["['a', len('b')]"]),
    ],
)
def test_a_list_as_written_by_pandas_is_read(folder, cell, wanted):
    with open(folder / "t.csv", "w", newline="") as file:
        csv.writer(file).writerows([["image", "caption"], ["img/0.png", cell]])
    assert captions(read_records(folder / "t.csv")) == {0: wanted}


def test_a_json_file_of_objects_is_read(folder):
    rows = [{"file_name": f"img/{i}.png", "caption": text} for i, text in ROWS[::-1]]
    (folder / "t.json").write_text(json.dumps([*rows, 7, {"file_name": "img/0.png"}]))
    records = read_records(folder / "t.json")
    assert captions(records) == {i: some[::-1] for i, some in WANTED.items()}
    assert problems(records) == {"t.json, row 31": "broken row", "t.json, row 32": "broken row"}
    assert len(read_records(folder / "t.json", join_rows=False)) == 32


def test_coco_captions_are_read(folder):
    """Annotations are in any order, one image has none, and one annotation has no image."""
    images = [{"id": 100 + i, "file_name": f"{i}.png", "height": 5} for i in range(6)]
    texts = [(i, text) for i, text in ROWS if i != 4]
    random.Random(1).shuffle(texts)
    annotations = [{"id": n, "image_id": 100 + i, "caption": text} for n, (i, text) in enumerate(texts)]
    annotations.append({"id": 99, "image_id": 7, "caption": "of nothing"})
    (folder / "img/captions.json").write_text(json.dumps({"info": {}, "images": images, "annotations": annotations}))
    records = read_records(folder / "img/captions.json")
    assert captions(records) == {4: [None]} | {i: [text for j, text in texts if j == i] for i in (0, 1, 2, 3, 5)}
    assert problems(records) == {"captions.json, row 26": "broken row"}


def test_karpathy_splits_are_read(folder):
    images = [{"filename": f"{i}.png", "sentences": [{"raw": text} for text in WANTED[i]]} for i in range(6)]
    (folder / "img/dataset.json").write_text(json.dumps({"images": images, "dataset": "flickr30k"}))
    assert captions(read_records(folder / "img/dataset.json")) == WANTED


@pytest.mark.parametrize(
    "text, words",
    [
        ("{", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ('"x"', "is neither a list of objects"),
        ('{"a": [1]}', "is neither a list of objects"),
        ("[]", "contains no rows"),
        ("[1]", "cannot identify the image column"),
    ],
)
def test_json_files_that_are_no_tables_are_a_one_line_error(tmp_path, text, words):
    (tmp_path / "t.json").write_text(text)
    with pytest.raises(UserError, match=words) as error:
        open_source(tmp_path / "t.json").parts()
    assert "\n" not in str(error.value)


def test_karpathy_splits_of_coco_are_read(folder):
    """The path is in two fields, or the name alone if the images are in one folder."""
    sentences = {"sentences": [{"raw": "one"}, {"raw": "two"}]}
    images = [{"filepath": "img", "filename": "1.png", **sentences}, {"filepath": "no", "filename": "img/2.png"}]
    images[1] |= sentences
    (folder / "dataset_coco.json").write_text(json.dumps({"images": images, "dataset": "coco"}))
    records = read_records(folder / "dataset_coco.json")
    assert captions(records) == {1: ["one", "two"], 2: ["one", "two"]} and problems(records) == {}
