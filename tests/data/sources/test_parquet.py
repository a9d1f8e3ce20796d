"""Test Parquet files as a source."""

import os

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from reading import encoded_images, problems, read_records

from imagen.data.sources import open_source
from imagen.errors import UserError

CAPTIONS = [f"caption {i} ü" for i in range(9)]


@pytest.mark.parametrize("group", [2, 4, 100])
@pytest.mark.parametrize("kind", ["binary", "large_binary", "struct", "path"])
def test_images_can_be_bytes_structs_or_paths(tmp_path, kind, group):
    data = encoded_images(9)
    for i, picture in enumerate(data):
        (tmp_path / f"{i}.png").write_bytes(picture)
    column = {
        "binary": pa.array(data, pa.binary()),
        "large_binary": pa.array(data, pa.large_binary()),
        "struct": pa.array(
            [{"bytes": d, "path": None} for d in data[:5]] + [{"bytes": None, "path": f"{i}.png"} for i in range(5, 9)]
        ),
        "path": pa.array([f"{i}.png" for i in range(9)]),
    }[kind]
    table = pa.table({"id": list(range(9)), "text": CAPTIONS, "image": column})
    pq.write_table(table, tmp_path / "t.parquet", row_group_size=group)
    records = read_records(tmp_path / "t.parquet")
    assert [(r.caption, r.image) for r in records] == list(zip(CAPTIONS, data, strict=True))
    assert (records[8].key, records[8].origin) == ("000000008", "t.parquet, row 9")


def test_files_are_found_at_any_depth(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / ".cache").mkdir()
    data = encoded_images(6)
    for i, name in enumerate(("data/train-0", "data/train-1", ".cache/x")):
        table = pa.table({"TEXT": CAPTIONS[2 * i : 2 * i + 2], "jpg": data[2 * i : 2 * i + 2]})
        pq.write_table(table, tmp_path / f"{name}.parquet")
    records = read_records(tmp_path)  # recognised
    assert [(r.key, r.image) for r in records] == [
        ("00000-000000000", data[0]),
        ("00000-000000001", data[1]),
        ("00001-000000000", data[2]),
        ("00001-000000001", data[3]),
    ]


def test_faulty_rows_have_reasons(tmp_path):
    not_utf8 = pa.Array.from_buffers(
        pa.string(), 4, [*pa.array(["a", "xy", "c", "d"]).buffers()[:2], pa.py_buffer(b"a\xff\xfecd")]
    )
    images = pa.array([b"good", b"fine", None, b""])
    pq.write_table(pa.table({"caption": not_utf8, "image": images}), tmp_path / "t.parquet")
    records = read_records(tmp_path / "t.parquet")
    assert problems(records) == {"t.parquet, row 3": "broken row", "t.parquet, row 4": "broken row"}
    assert [r.caption for r in records] == ["a", b"\xff\xfe", "c", "d"]
    table = pa.table({"caption": ["x"], "image": ["none.png"], "number": [1]})
    pq.write_table(table, tmp_path / "u.parquet")
    assert problems(read_records(tmp_path / "u.parquet")) == {"u.parquet, row 1": "missing file"}
    assert problems(read_records(tmp_path / "u.parquet", caption_column="number")) == {"u.parquet, row 1": "broken row"}


def test_damaged_data_give_the_rows_before_and_a_problem_for_each_row_after(tmp_path):
    path = tmp_path / "t.parquet"
    table = pa.table({"caption": [f"{i}" for i in range(3000)], "image": [os.urandom(1000) for _ in range(3000)]})
    pages = {"data_page_size": 10_000, "write_batch_size": 10, "compression": "zstd", "use_dictionary": False}
    pq.write_table(table, path, row_group_size=1000, **pages)
    column = pq.ParquetFile(path).metadata.row_group(1).column(1)
    with open(path, "r+b") as file:
        file.seek(column.data_page_offset + column.total_compressed_size // 2)
        file.write(os.urandom(30_000))
    source = open_source(path)
    first, second, third = (list(source.read(part)) for part in source.parts())
    assert not problems(first + third) and len(first) == len(third) == 1000
    good = sum(record.problem is None for record in second)
    assert 300 < good < 600 and [r.caption for r in second[:good]] == [f"{1000 + i}" for i in range(good)]
    assert problems(second) == {f"t.parquet, row {1001 + i}": "unreadable file" for i in range(good, 1000)}


def test_unusable_files_are_a_one_line_error(tmp_path):
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table({"caption": ["x"], "image": [b"p"]}), path)
    source = open_source(path)
    (part,) = source.parts()
    whole = path.read_bytes()
    for broken in (whole[:-10], b"", b"text"):
        path.write_bytes(broken)
        with pytest.raises(UserError, match=r"t\.parquet is not a complete Parquet file"):
            open_source(path).parts()
    path.unlink()
    with pytest.raises(UserError, match=r"t\.parquet does not exist"):
        list(source.read(part))
    pq.write_table(pa.table({"caption": ["x"], "url": ["http://x"]}), path)
    with pytest.raises(UserError, match="img2dataset"):
        open_source(path).parts()


def test_a_missing_pyarrow_is_a_user_error_with_the_remedy(tmp_path, monkeypatch):
    pq.write_table(pa.table({"caption": ["x"], "image": [b"p"]}), tmp_path / "t.parquet")
    monkeypatch.setitem(__import__("sys").modules, "pyarrow.parquet", None)
    with pytest.raises(UserError, match=r"pip install 'imagen-cascade\[data\]'"):
        open_source(tmp_path / "t.parquet").parts()
