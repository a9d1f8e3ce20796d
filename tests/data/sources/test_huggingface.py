"""Test saved Hugging Face data sets as a source."""

import io
import json
import os
import shutil

import pytest
from PIL import Image
from reading import encoded_images, problems, read_records

from imagen.data.sources import open_source
from imagen.errors import UserError

datasets = pytest.importorskip("datasets")

CAPTIONS = [f"caption {i} ü" for i in range(7)]


@pytest.fixture(autouse=True)
def quiet(monkeypatch):
    datasets.disable_progress_bars()


def dataset(count=7):
    features = datasets.Features({"image": datasets.Image(), "caption": datasets.Value("string")})
    rows = [{"bytes": data, "path": None} for data in encoded_images(count)]
    return datasets.Dataset.from_dict({"image": rows, "caption": CAPTIONS[:count]}, features)


@pytest.mark.parametrize("files", [1, 3])
def test_a_saved_dataset_gives_the_same_bytes_as_the_library(tmp_path, files):
    dataset().save_to_disk(tmp_path / "d", num_shards=files)
    records = read_records(tmp_path / "d")  # recognised
    assert [(r.caption, r.image) for r in records] == list(zip(CAPTIONS, encoded_images(7), strict=True))
    decoded = datasets.load_from_disk(str(tmp_path / "d"))
    for record, row in zip(records, decoded, strict=True):
        assert Image.open(io.BytesIO(record.image)).tobytes() == row["image"].tobytes()
    assert records[0].key == ("000000000" if files == 1 else "00000-000000000")


def test_a_saved_selection_is_read_as_selected(tmp_path):
    dataset().select([5, 2, 3]).save_to_disk(tmp_path / "d")
    assert [r.caption for r in read_records(tmp_path / "d")] == [CAPTIONS[i] for i in (5, 2, 3)]


def test_all_splits_of_a_dictionary_are_read(tmp_path):
    datasets.DatasetDict(train=dataset(3), test=dataset(2)).save_to_disk(tmp_path / "d")
    records = read_records(tmp_path / "d")
    assert [r.key for r in records] == [f"train/{i:09d}" for i in range(3)] + [f"test/{i:09d}" for i in range(2)]
    assert [r.image for r in records] == encoded_images(3) + encoded_images(2)


def test_parquet_files_of_the_library_are_read(tmp_path):
    dataset().to_parquet(tmp_path / "t.parquet")
    assert [(r.caption, r.image) for r in read_records(tmp_path)] == list(zip(CAPTIONS, encoded_images(7), strict=True))


def test_faulty_rows_have_reasons(tmp_path):
    path = tmp_path / "d"
    rows = [None, {"bytes": b"p", "path": None}, None]
    features = datasets.Features({"image": datasets.Image(decode=False), "caption": datasets.Value("string")})
    table = datasets.Dataset.from_dict({"image": rows, "caption": ["b", "c", None]}, features)
    table.save_to_disk(path)
    (name,) = [p.name for p in path.glob("*.arrow")]
    records = read_records(path)
    assert problems(records) == {f"{name}, row 1": "broken row", f"{name}, row 3": "broken row"}
    assert [r.caption for r in records] == ["b", "c", None]

    source = open_source(path)
    (part,) = source.parts()
    whole = (path / name).read_bytes()
    os.truncate(path / name, len(whole) // 2)
    with pytest.raises(UserError, match=f"{name} is (truncated|not a complete)"):
        open_source(path).parts()
    (path / name).write_bytes(b"")
    with pytest.raises(UserError, match=f"{name} is not a complete"):
        open_source(path).parts()
    (path / name).unlink()
    with pytest.raises(UserError, match=f"{name} does not exist"):
        list(source.read(part))
    (path / "state.json").write_text("{}")
    with pytest.raises(UserError, match=r"state\.json is not of a data set saved by save_to_disk"):
        open_source(path).parts()
    shutil.rmtree(path)
    with pytest.raises(UserError, match="does not exist"):
        open_source(path)


def test_a_file_truncated_after_it_was_listed_is_reported(tmp_path):
    features = datasets.Features({"image": datasets.Value("binary"), "caption": datasets.Value("string")})
    rows = {"image": [os.urandom(1000) for _ in range(3000)], "caption": [str(i) for i in range(3000)]}
    datasets.Dataset.from_dict(rows, features).save_to_disk(tmp_path / "d")
    (file,) = (tmp_path / "d").glob("*.arrow")
    source = open_source(tmp_path / "d", records_per_part=3000)
    (part,) = source.parts()
    os.truncate(file, file.stat().st_size // 2)
    records = list(source.read(part))
    good = sum(record.problem is None for record in records)
    assert 500 < good < 2000 and [r.image for r in records[:good]] == rows["image"][:good]
    assert problems(records) == {f"{file.name}, row {i + 1}": "unreadable file" for i in range(good, 3000)}


@pytest.mark.parametrize(
    "splits", [[7], [None], [["train"]], [{"train": 1}], ["/etc"], [".."], ["train/.."], [""], ["a\0b"], "train", None]
)
def test_invalid_split_names_are_a_one_line_error(tmp_path, splits):
    (tmp_path / "dataset_dict.json").write_text(json.dumps({"splits": splits}))
    with pytest.raises(UserError, match=r"dataset_dict\.json") as error:
        open_source(tmp_path).parts()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["/etc/passwd", "../d/data-00000-of-00001.arrow", "sub/x.arrow", "..", 7, None])
def test_files_outside_the_folder_are_rejected(tmp_path, name):
    dataset().save_to_disk(tmp_path / "d")
    state = json.loads((tmp_path / "d" / "state.json").read_text())
    state["_data_files"] = [{"filename": name}]
    (tmp_path / "d" / "state.json").write_text(json.dumps(state))
    with pytest.raises(UserError, match=r"state\.json") as error:
        open_source(tmp_path / "d").parts()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["state.json", "dataset_info.json", "data-00000-of-00001.arrow"])
def test_a_pipe_in_place_of_a_file_does_not_hang(tmp_path, name):
    dataset().save_to_disk(tmp_path / "d")
    (tmp_path / "d" / name).unlink()
    os.mkfifo(tmp_path / "d" / name)
    if name == "dataset_info.json":  # this file is not read
        assert len(read_records(tmp_path / "d")) == 7
        return
    with pytest.raises(UserError, match=r"pipe|no known format"):
        open_source(tmp_path / "d").parts()
