"""Test how the format of a source is recognised."""

import io
import tarfile

import pytest

from imagen.data.sources import FORMATS, open_source
from imagen.errors import UserError


def write_files(folder, *names):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".tar":
            with tarfile.open(path, "w") as tar:
                tar.addfile(tarfile.TarInfo("a.jpg"), io.BytesIO())
        else:
            path.write_bytes(b"")


@pytest.mark.parametrize(
    "format, names",
    [
        ("folder", ["1.png", "1.txt"]),
        ("folder", ["deep/er/1.JPEG"]),
        ("csv", ["t.csv"]),
        ("tsv", ["a.tsv", "b.tsv"]),
        ("jsonl", ["t.jsonl"]),
        ("csv", ["1.png", "deep/2.png", "metadata.csv"]),
        ("csv", ["1.png", "1.txt", "metadata.csv", "labels.csv", "other.tsv", "images.tar", "data.parquet"]),
        ("csv", ["images/1.png", "pairs.csv"]),  # images without caption files
        ("csv", ["train/1.png", "train/metadata.csv", "test/deep/2.png", "test/Metadata.CSV"]),
        ("jsonl", ["train/1.png", "train/metadata.jsonl", "README.md"]),
        ("parquet", ["data/train-00000.parquet", "README.md"]),
        ("webdataset", ["0.tar", "0.parquet", "0_stats.json"]),  # img2dataset's output
        ("webdataset", ["train/0.tar", "heldout/0.tar"]),
        ("huggingface", ["state.json", "dataset_info.json", "data-00000-of-00001.arrow"]),
        ("huggingface", ["dataset_dict.json", "train/state.json", "train/data-00000-of-00001.arrow"]),
    ],
)
def test_an_unambiguous_folder_format_is_recognised(tmp_path, format, names):
    write_files(tmp_path, *names)
    assert type(open_source(tmp_path)) is FORMATS[format]


@pytest.mark.parametrize("name", ["t.csv", "t.TSV", "t.jsonl", "t.parquet"])
def test_the_format_of_a_file_is_recognised_by_its_name(tmp_path, name):
    write_files(tmp_path, name)
    assert type(open_source(str(tmp_path / name))) is FORMATS[name.lower()[2:]]


@pytest.mark.parametrize(
    "names, words",
    [
        (["1.png", "1.txt", "pairs.csv"], "may be folder or csv; name it with --format"),
        (["a.csv", "b.jsonl"], "may be csv or jsonl; name it"),
        ([".hidden/1.png", "notes.md"], "has no known format"),
        (["1.npy"], "has no known format"),
        (["dangling.gz"], "has no known format"),
    ],
)
def test_an_ambiguous_format_is_an_error_that_names_the_formats(tmp_path, names, words):
    write_files(tmp_path, *names)
    with pytest.raises(UserError, match=words) as error:
        open_source(tmp_path)
    assert all(name in str(error.value) for name in FORMATS) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "names, words",
    [
        (["a/1.png", "b/1.png", "a/metadata.csv"], "images described by metadata.csv and others .* such as b/1.png"),
        (
            ["a/1.png", "a/metadata.csv", "b/metadata.jsonl"],
            "metadata.csv and metadata.jsonl; .* csv or jsonl",
        ),
    ],
)
def test_tables_that_describe_some_of_the_images_are_named(tmp_path, names, words):
    write_files(tmp_path, *names)
    with pytest.raises(UserError, match=words):
        open_source(tmp_path)


def test_other_tables_beside_metadata_are_not_read(tmp_path):
    write_files(tmp_path, "1.png")
    (tmp_path / "metadata.csv").write_text("file_name,text\n1.png,one\n")
    (tmp_path / "labels.csv").write_text("id,label\n1,2\n")
    source = open_source(tmp_path)
    (record,) = [record for part in source.parts() for record in source.read(part)]
    assert record.caption == "one" and record.problem is None


def test_invalid_paths_and_options_are_a_one_line_error(tmp_path):
    write_files(tmp_path, "1.png")
    for words, path, options in [
        ("unknown format 'foldr'; did you mean 'folder'", tmp_path, {"format": "foldr"}),
        ("nowhere does not exist", tmp_path / "nowhere", {"format": "csv"}),
        ("the format folder has no named columns", tmp_path, {"caption_column": "c"}),
        ("it must be folder or name", tmp_path, {"caption_from": "class"}),
        (
            "--caption-from is for folders of images; the format csv",
            tmp_path,
            {"caption_from": "name", "format": "csv"},
        ),
        ("records_per_part is 0", tmp_path, {"records_per_part": 0}),
    ]:
        with pytest.raises(UserError, match=words) as error:
            open_source(path, **options)
        assert "\n" not in str(error.value)


def test_binary_files_with_the_tabs_of_a_format_are_not_recognised(tmp_path):
    (tmp_path / "t.parquet").write_bytes(b"PAR1\x15\x04\ta\tb\tc\td\te\n")
    assert type(open_source(tmp_path / "t.parquet")) is FORMATS["parquet"]
