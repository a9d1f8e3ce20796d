"""Test CSV, TSV and JSONL tables as a source."""

import base64
import csv
import json
import random

import pytest
from reading import encoded_images, problems, read_records

from imagen.data.sources import open_source
from imagen.errors import UserError

CAPTIONS = [
    "a cat",
    "two\nlines, and a comma",
    'he said "hello"\r\nand left\n\n',
    "tab\there",
    '"',
    "",
    "Ünïcode 🐙\u2028line separator\x85next",
    '\',"\'\n","\n',
    "end",
]


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "img").mkdir()
    for i, data in enumerate(encoded_images(len(CAPTIONS))):
        (tmp_path / "img" / f"{i}.png").write_bytes(data)
    return tmp_path


def write_csv(path, rows, header=("id", "image", "caption"), **dialect):
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, **dialect)
        writer.writerow(header)
        writer.writerows(rows)


@pytest.mark.parametrize("quoting", [csv.QUOTE_MINIMAL, csv.QUOTE_ALL])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("format", ["csv", "tsv"])
def test_csv_and_tsv_written_by_the_csv_module_are_read(folder, format, end, quoting):
    rows = [(i, f"img/{i}.png", caption) for i, caption in enumerate(CAPTIONS)]
    delimiter = {"csv": ",", "tsv": "\t"}[format]
    write_csv(folder / f"t.{format}", rows, delimiter=delimiter, lineterminator=end, quoting=quoting)
    records = read_records(folder / f"t.{format}")
    assert [r.caption for r in records] == CAPTIONS
    assert [r.image for r in records] == encoded_images(len(CAPTIONS))
    assert (records[0].key, records[0].origin) == ("000000002", f"t.{format}, line 2")
    # The preceding row has two lines.
    assert (records[2].key, records[2].origin) == ("000000005", f"t.{format}, line 5")


def test_any_table_that_the_csv_module_writes_is_split_into_whole_rows(tmp_path):
    (tmp_path / "p").write_bytes(b"p")
    rng = random.Random(0)
    for trial in range(30):
        captions = ["".join(rng.choices('ab", \n\r', k=rng.randrange(8))) for _ in range(40)]
        write_csv(tmp_path / f"{trial}.csv", [(c, "p") for c in captions], ("caption", "image"))
        assert [r.caption for r in read_records(tmp_path / f"{trial}.csv", join_rows=False)] == captions


def test_a_byte_order_mark_and_a_missing_final_line_end_are_accepted(folder):
    (folder / "t.csv").write_bytes(b"\xef\xbb\xbfTEXT,file_name\r\none,img/0.png\r\n\r\ntwo,img/1.png")
    records = read_records(folder / "t.csv")
    assert [(r.origin, r.caption) for r in records] == [("t.csv, line 2", "one"), ("t.csv, line 4", "two")]
    assert [r.image for r in records] == encoded_images(2)


def test_jsonl_is_read(folder):
    with open(folder / "t.jsonl", "w", encoding="utf-8") as file:
        for i, caption in enumerate(CAPTIONS):
            file.write(
                json.dumps({"image": f"img/{i}.png", "prompt": caption}, ensure_ascii=bool(i % 2)) + "\n" * (1 + i % 3)
            )
    records = read_records(folder / "t.jsonl")
    assert [r.caption for r in records] == CAPTIONS and [r.image for r in records] == encoded_images(len(CAPTIONS))


def test_base64_images_may_exceed_the_field_limit_of_the_csv_module(tmp_path):
    data = random.Random(0).randbytes(300_000)
    coded = [base64.b64encode(data), base64.urlsafe_b64encode(data), b"data:image/png;base64," + base64.b64encode(data)]
    write_csv(tmp_path / "t.csv", [("c", c.decode()) for c in coded], ("caption", "image_base64"))
    with open(tmp_path / "t.jsonl", "w") as file:
        file.writelines(json.dumps({"caption": "c", "b64": c.decode()}) + "\n" for c in coded)
    assert [r.image for r in read_records(tmp_path / "t.csv")] == [data] * 3
    assert [r.image for r in read_records(tmp_path / "t.jsonl", image_column="b64")] == [data] * 3


def test_absolute_paths_and_folders_of_tables_are_read(folder):
    (folder / "deep").mkdir()
    header = ("caption", "image")
    write_csv(folder / "deep" / "b.csv", [("absolute", folder / "img" / "0.png"), ("up", "../img/1.png")], header)
    write_csv(folder / "a.csv", [("here", "img/2.png")], ("image_path", "title")[::-1])
    write_csv(folder / "none.csv", [], header)
    records = read_records(folder, "csv")
    a, b, c = encoded_images(3)
    assert [(r.key, r.caption, r.image) for r in records] == [
        ("00000-000000002", "here", c),
        ("00001-000000002", "absolute", a),
        ("00001-000000003", "up", b),
    ]


def test_faulty_csv_rows_have_reasons(folder):
    (folder / "img" / "dir.png").mkdir()
    lines = [
        b"caption,image",
        b"good,img/0.png",
        b"short",
        b"a, b,img/0.png",
        b"not utf-8 \xff,img/0.png",
        b"gone,img/none.png",
        b"folder,img/dir.png",
        b"zero,img/\x00.png",
        b"empty,",
        b"web,https://example.com/1.png",
        b'"a stray quote,img/0.png',
        b'after it,"img/1.png"',
        b"between,img/2.png",
        b'another "stray one",img/3.png',
        b'"open to the end,img/4.png',
        b"last,img/5.png",
    ]
    (folder / "t.csv").write_bytes(b"\n".join(lines))
    records = read_records(folder / "t.csv", join_rows=False)
    reasons = problems(records)
    # The csv module of Python 3.10 reports a broken row.
    assert reasons.pop("t.csv, line 8") in ("unreadable file", "broken row")
    assert reasons == {
        "t.csv, line 3": "broken row",
        "t.csv, line 4": "broken row",
        "t.csv, line 5": "broken row",
        "t.csv, line 6": "missing file",
        "t.csv, line 7": "unreadable file",
        "t.csv, line 9": "broken row",
        "t.csv, line 10": "missing file",
    }
    good = [r.caption for r in records if not r.problem]
    literal = '"open to the end'
    assert good == ["good", '"a stray quote', "after it", "between", 'another "stray one"', literal, "last"]
    assert next(r.caption for r in records if r.origin == "t.csv, line 6") == "gone"


def test_an_unclosed_quote_affects_only_its_own_row(tmp_path):
    (tmp_path / "p").write_bytes(b"p")
    rows = ["p\tc"] * 2000
    rows[700] = 'p\t"c'
    rows[900] = 'p\t"c\tmore'
    (tmp_path / "t.tsv").write_text("\n".join(["path\tcaption", *rows]))
    records = read_records(tmp_path / "t.tsv", part_sizes=(300, 1000), join_rows=False)
    assert problems(records) == {"t.tsv, line 902": "broken row"} and len(records) == 2000
    assert [r.caption for r in records if not r.problem and r.caption != "c"] == ['"c']


QUOTED = {
    # name: (lines, captions; None for a broken row); columns: image, caption
    "words in quotes first": (['{}.png,"Sold" sign', '{}.png,"one, two" and 3'], ['"Sold" sign', '"one, two" and 3']),
    "escaped by backslashes": (
        [r'{}.png,"a \"red\" apple"', r'{}.png,"5\""', r'{}.png,"\",\" and \\"', r'{}.png,"C:\dir\"'],
        ['a "red" apple', '5"', '"," and \\', "C:\\dir\\"],
    ),
    "escaped, on two lines": ([r'{}.png,"say \"hi\"', 'and go"', "{}.png,plain"], ['say "hi"\nand go', None, "plain"]),
    "unclosed, then another unclosed": (['{}.png,"one', '{}.png,"two', "{}.png,three"], ['"one', '"two', "three"]),
    "unclosed, then inches": (
        ['{}.png,"one', "{}.png,two", "{}.png,three", '{}.png,a pipe of 5"', "{}.png,four"],
        ['"one', "two", "three", 'a pipe of 5"', "four"],
    ),
    # Ambiguous: two rows, or one row with an unusual caption.
    "unclosed, then inches at once": (['{}.png,"one', '{}.png,a pipe of 5"', "{}.png,four"], [..., ..., "four"]),
    "a caption that names a picture": (
        ['{}.png,"one', "see 7.png, which", 'is nicer"', "{}.png,two"],
        [..., ..., ..., "two"],
    ),
    "text behind the quote and a comma": (['{}.png,"a, b" c, d', "{}.png,e"], [..., "e"]),
    "a quote in a cell without quotes": (['{}.png,he said "hi"', "{}.png,e"], ['he said "hi"', "e"]),
}


@pytest.mark.parametrize("name", QUOTED)
@pytest.mark.parametrize("delimiter", [",", "\t"])
def test_nonstandard_quotes_are_read_or_rejected_by_row(tmp_path, name, delimiter):
    for i in range(6):
        (tmp_path / f"{i}.png").write_bytes(b"%d" % i)
    lines, captions = QUOTED[name]
    text = "".join(f"{line.format(i)}\n" for i, line in enumerate(["image,caption", *lines]))
    path = tmp_path / ("t.csv" if delimiter == "," else "t.tsv")
    path.write_text(text.replace(",", delimiter))
    wanted = {i: c.replace(",", delimiter) if isinstance(c, str) else c for i, c in enumerate(captions, 2) if c}
    records = read_records(path)
    assert {int(r.key): ... if r.problem else r.caption for r in records} == wanted
    assert all(r.problem[0] == "broken row" if r.problem else r.image == b"%d" % (int(r.key) - 1) for r in records)


def test_faulty_jsonl_rows_have_reasons(folder):
    lines = [
        b'{"image": "img/0.png", "caption": "cut off',
        b'{"image": "img/0.png", "caption": "good"}',
        b'{"image": "img/0.png"}',
        b'["img/0.png", "a list"]',
        b'{"image": 7, "caption": "x"}',
        b'{"image": null, "caption": "x"}',
        b'{"image": "img/0.png", "caption": ["x"]}',
        b'{"image": "img/0.png", "caption": "\xff"}',
        b'{"image": {"path": "img/1.png", "bytes": null}, "caption": null}',
        b'{"image": "img/2.png", "caption": "half of a pair \\ud83d"}',
        b'{"image": "img/\\ud83d.png", "caption": "x"}',
        b"[" * 100_000,
    ]
    (folder / "t.jsonl").write_bytes(b"\n".join(lines))
    records = read_records(folder / "t.jsonl")
    assert problems(records) == {f"t.jsonl, line {i}": "broken row" for i in (1, 3, 4, 5, 6, 8, 12)} | {
        "t.jsonl, line 11": "unreadable file"
    }
    half = "half of a pair \ud83d".encode("utf-8", "surrogatepass")
    assert [(r.caption, r.further) for r in records if not r.problem] == [("good", ("x",)), (None, ()), (half, ())]
    assert "t.jsonl, line 2 and 1 more with its image" in [r.origin for r in records]


def test_invalid_base64_is_rejected(tmp_path):
    write_csv(tmp_path / "t.csv", [("c", "####"), ("c", "abc"), ("c", "data:image/png;base64,")], ("text", "image_b64"))
    records = read_records(tmp_path / "t.csv", image_column="image_b64")
    assert list(problems(records).values()) == ["bad base64"] * 3


@pytest.mark.parametrize(
    "content, options, words",
    [
        (b"a,b\n1,2\n", {}, "cannot identify the image column of .*'a', 'b'.*--image-column"),
        (b"image,b\n1,2\n", {}, "cannot identify the caption column .*--caption-column"),
        (b"image,b\n1,2\n", {"caption_column": "caption"}, "no column 'caption'.*'image', 'b'"),
        (b"image,captoin\n1,2\n", {"caption_column": "caption"}, "did you mean 'captoin'"),
        (b"url,caption\n1,2\n", {}, "img2dataset"),
        (b"image,caption\n", {}, "contains no rows"),
        (b"", {}, "begins with an empty line; put the column names there"),
        (b"image;caption\n1;2\n", {}, "one column, 'image;caption'.*';': save it with commas"),
        (b"image_name| comment\n1| 2\n", {"image_column": "image_name"}, "no column 'image_name'.*commas"),
        (b"image\tcaption\n1\t2\n", {}, "--format tsv"),
        (b"\xff\xfei\x00m\x00\n\x00", {}, "UTF-16"),
        (b"\xff,caption\n", {}, "not UTF-8"),
    ],
)
def test_an_unusable_table_is_a_one_line_error(tmp_path, content, options, words):
    (tmp_path / "t.csv").write_bytes(content)
    with pytest.raises(UserError, match=words) as error:
        open_source(tmp_path / "t.csv", **options).parts()
    assert "t.csv" in str(error.value) and "\n" not in str(error.value)


def test_missing_files_and_files_without_objects_are_reported(tmp_path):
    (tmp_path / "t.jsonl").write_bytes(b'[{"image": "a"},\n {"image": "b"}]')
    with pytest.raises(UserError, match=r"t\.jsonl contains no JSON object"):
        open_source(tmp_path / "t.jsonl").parts()
    (tmp_path / "t.jsonl").write_bytes(b'{"image": "a", "caption": "b"}')
    source = open_source(tmp_path / "t.jsonl")
    (part,) = source.parts()
    (tmp_path / "t.jsonl").unlink()
    with pytest.raises(UserError, match=r"t\.jsonl does not exist"):
        list(source.read(part))


def test_json_lines_may_have_different_fields(folder):
    rows = [
        {"id": 1},
        {"id": 2, "image": "img/0.png"},
        {"id": 3, "text": "a slip", "caption": None, "image": "img/1.png"},
        {"caption": "one", "image": "img/2.png", "more": [1]},
        {"image": "img/3.png", "caption": "two"},
        {"caption": "no picture"},
        {"caption": "three", "image": "img/4.png", "id": 7},
    ]
    (folder / "t.jsonl").write_text("\n".join(map(json.dumps, rows)))
    records = read_records(folder / "t.jsonl")
    assert [r.caption for r in records if not r.problem] == [None, "one", "two", "three"]  # null: no caption
    assert problems(records) == {f"t.jsonl, line {i}": "broken row" for i in (1, 2, 6)}
    named = read_records(folder / "t.jsonl", caption_column="text")
    assert [r.caption for r in named if not r.problem] == ["a slip"]


def test_fields_that_first_occur_late_are_found(folder):
    rows = [{"image": f"img/{i % 5}.png"} for i in range(300)] + [{"image": "img/5.png", "caption": "late"}]
    (folder / "t.jsonl").write_text("\n".join(map(json.dumps, rows)))
    records = read_records(folder / "t.jsonl", part_sizes=(50, 1000))
    assert [r.caption for r in records if not r.problem] == ["late"] and len(records) == 301


@pytest.mark.parametrize("format, delimiter", [("csv", ","), ("tsv", "\t")])
def test_short_rows_are_used_if_they_have_image_and_caption(folder, format, delimiter):
    lines = [
        "caption,image,width,height",
        "one,img/0.png,8,8",
        "two,img/1.png",
        "three",
        "four,img/2.png,8,8,9",
        '"five",img/3.png',
        "six,img/4.png,",
    ]
    path = folder / f"t.{format}"
    path.write_text("\n".join(lines).replace(",", delimiter))
    records = read_records(path)
    assert [r.caption for r in records if not r.problem] == ["one", "two", "five", "six"]
    assert problems(records) == {f"t.{format}, line {i}": "broken row" for i in (4, 5)}


@pytest.mark.parametrize("join_rows", [True, False])
def test_images_missing_from_the_table_of_their_folder_are_rejected(tmp_path, join_rows):
    data = encoded_images(6)
    for i, name in enumerate(["a/0.png", "a/deep/1.png", "a/2.png", "b/3.png", "b/4.jpg", "b/5 é.PNG"]):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(data[i])
    (tmp_path / "a/metadata.csv").write_text("file_name,text\n0.png,zero\n./deep/1.png,one\n9.png,gone\n")
    (tmp_path / "b/metadata.csv").write_text(f"text,file_name\nthree,{tmp_path.absolute()}/b/3.png\n")
    (tmp_path / "beside.png").write_bytes(data[0])  # not in a folder that the table uses
    records = read_records(tmp_path, "csv", join_rows=join_rows)
    assert {r.image: r.caption for r in records if not r.problem} == {data[0]: "zero", data[1]: "one", data[3]: "three"}
    assert problems(records) == {
        "a/metadata.csv, line 4": "missing file",
        **dict.fromkeys(["a/2.png", "b/4.jpg", "b/5 é.PNG", "beside.png"], "missing caption"),
    }


def test_paths_of_several_tables_below_one_folder_of_images(tmp_path):
    """The tables' own folders do not matter then: neither do different images become one, nor one image two."""
    (tmp_path / "tables" / "a").mkdir(parents=True)
    (tmp_path / "images" / "a").mkdir(parents=True)
    for name, data in zip(("1.png", "a/1.png"), encoded_images(2), strict=True):
        (tmp_path / "images" / name).write_bytes(data)
    (tmp_path / "tables" / "root.csv").write_text("image,caption\na/1.png,below\n1.png,above\n")
    (tmp_path / "tables" / "a" / "x.csv").write_text("image,caption\n1.png,again above\n")
    records = read_records(tmp_path / "tables", "csv", images=tmp_path / "images")
    found = {record.image: {record.caption, *record.further} for record in records}
    above, below = encoded_images(2)
    assert len(records) == 2 and found == {above: {"above", "again above"}, below: {"below"}}
