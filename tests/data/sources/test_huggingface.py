import io
import os
import shutil

import pytest
from PIL import Image
from reading import pictures, problems, read

from imagen.data.sources import open_source
from imagen.errors import UserError

datasets = pytest.importorskip("datasets")

CAPTIONS = [f"caption {i} ü" for i in range(7)]


@pytest.fixture(autouse=True)
def quiet(monkeypatch):
    datasets.disable_progress_bars()


def dataset(count=7):
    features = datasets.Features({"image": datasets.Image(), "caption": datasets.Value("string")})
    rows = [{"bytes": data, "path": None} for data in pictures(count)]
    return datasets.Dataset.from_dict({"image": rows, "caption": CAPTIONS[:count]}, features)


@pytest.mark.parametrize("files", [1, 3])
def test_a_saved_dataset_gives_the_librarys_bytes(tmp_path, files):
    dataset().save_to_disk(tmp_path / "d", num_shards=files)
    records = read(tmp_path / "d")  # guessed
    assert [(r.caption, r.image) for r in records] == list(zip(CAPTIONS, pictures(7), strict=True))
    decoded = datasets.load_from_disk(str(tmp_path / "d"))
    for record, row in zip(records, decoded, strict=True):
        assert Image.open(io.BytesIO(record.image)).tobytes() == row["image"].tobytes()
    assert records[0].key == ("000000000" if files == 1 else "00000-000000000")


def test_a_selection_is_saved_and_read_as_selected(tmp_path):
    dataset().select([5, 2, 3]).save_to_disk(tmp_path / "d")
    assert [r.caption for r in read(tmp_path / "d")] == [CAPTIONS[i] for i in (5, 2, 3)]


def test_all_splits_of_a_dictionary(tmp_path):
    datasets.DatasetDict(train=dataset(3), test=dataset(2)).save_to_disk(tmp_path / "d")
    records = read(tmp_path / "d")
    assert [r.key for r in records] == [f"train/{i:09d}" for i in range(3)] + [f"test/{i:09d}" for i in range(2)]
    assert [r.image for r in records] == pictures(3) + pictures(2)


def test_the_librarys_parquet_files(tmp_path):
    dataset().to_parquet(tmp_path / "t.parquet")
    assert [(r.caption, r.image) for r in read(tmp_path)] == list(zip(CAPTIONS, pictures(7), strict=True))


def test_faults(tmp_path):
    path = tmp_path / "d"
    rows = [None, {"bytes": b"p", "path": None}, None]
    features = datasets.Features({"image": datasets.Image(decode=False), "caption": datasets.Value("string")})
    table = datasets.Dataset.from_dict({"image": rows, "caption": ["b", "c", None]}, features)
    table.save_to_disk(path)
    (name,) = [p.name for p in path.glob("*.arrow")]
    records = read(path)
    assert problems(records) == {f"{name}, row 1": "broken row", f"{name}, row 3": "broken row"}
    assert [r.caption for r in records] == ["b", "c", None]

    source = open_source(path)
    (part,) = source.parts()
    whole = (path / name).read_bytes()
    os.truncate(path / name, len(whole) // 2)
    with pytest.raises(UserError, match=f"{name} is (cut off|not a whole)"):
        open_source(path).parts()
    (path / name).write_bytes(b"")
    with pytest.raises(UserError, match=f"{name} is not a whole"):
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


def test_a_file_cut_off_after_it_was_listed(tmp_path):
    features = datasets.Features({"image": datasets.Value("binary"), "caption": datasets.Value("string")})
    rows = {"image": [os.urandom(1000) for _ in range(3000)], "caption": [str(i) for i in range(3000)]}
    datasets.Dataset.from_dict(rows, features).save_to_disk(tmp_path / "d")
    (file,) = (tmp_path / "d").glob("*.arrow")
    source = open_source(tmp_path / "d", records_per_part=3000)
    (part,) = source.parts()
    os.truncate(file, file.stat().st_size // 2)
    records = list(source.read(part))
    assert 500 < len(records) < 2000 and [r.image for r in records[:-1]] == rows["image"][: len(records) - 1]
    assert problems(records) == {f"{file.name}, row {len(records)} to 3000": "unreadable file"}
