"""COCO's captions, and tables whose images are in another folder."""

import json

import pytest
from corpus import encoded, picture

from imagen.data.sources import open_source
from imagen.errors import UserError


@pytest.fixture
def coco(tmp_path):
    (tmp_path / "train2017").mkdir()
    (tmp_path / "annotations").mkdir()
    for i in range(3):
        (tmp_path / "train2017" / f"{i:012d}.jpg").write_bytes(encoded(picture(i), "JPEG"))
    captions = {
        "info": {"year": 2017},
        "images": [{"id": 10 + i, "file_name": f"{i:012d}.jpg", "height": 72, "width": 80} for i in range(3)],
        "annotations": [
            {"image_id": 11, "id": 1, "caption": "a dog"},
            {"image_id": 10, "id": 2, "caption": "a cat"},
            {"image_id": 11, "id": 3, "caption": "a brown dog"},
        ],
    }
    (tmp_path / "annotations" / "captions_train2017.json").write_text(json.dumps(captions))
    return tmp_path


def read(path, **options):
    source = open_source(path, **options)
    return [record for part in source.parts() for record in source.read(part)]


def test_images_are_found_in_cocos_own_layout(coco):
    records = read(coco / "annotations" / "captions_train2017.json")
    assert [(record.caption, record.further) for record in records] == [
        ("a dog", ("a brown dog",)),
        ("a cat", ()),
        (None, ()),
    ]
    assert [record.image == encoded(picture(i), "JPEG") for record, i in zip(records, (1, 0, 2), strict=True)] == [
        True
    ] * 3


@pytest.mark.parametrize("ending", ["json", "jsonl", "csv"])
def test_the_folder_of_the_images_may_be_given(coco, ending):
    name = "000000000001.jpg"
    text = {
        "json": json.dumps([{"file_name": name, "caption": "x"}]),
        "jsonl": json.dumps({"file_name": name, "caption": "x"}) + "\n",
        "csv": f"file_name,caption\n{name},x\n",
    }[ending]
    table = coco / f"table.{ending}"
    table.write_text(text)
    assert read(table)[0].problem[0] == "missing file"
    (record,) = read(table, images=coco / "train2017")
    assert record.image == encoded(picture(1), "JPEG") and record.caption == "x"


def test_a_folder_of_images_that_cannot_be_is_refused(coco):
    with pytest.raises(UserError, match="nowhere is not a folder"):
        open_source(coco / "annotations" / "captions_train2017.json", images=coco / "nowhere")
    with pytest.raises(UserError, match="--images is for tables"):
        open_source(coco / "train2017", images=coco)
