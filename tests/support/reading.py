"""Read a source, and check that its parts are JSON, independent, and cover each record once for any part size."""

import io
import json
import pickle
import re

import numpy as np
from PIL import Image

from imagen.data.sources import open_source


def encoded_images(count, form="PNG"):
    """Return `count` different images, encoded."""
    found = []
    for i in range(count):
        file = io.BytesIO()
        pixels = np.random.default_rng(i).integers(0, 256, (4 + i % 3, 5, 3), np.uint8)
        Image.fromarray(pixels).save(file, form)
        found.append(file.getvalue())
    return found


def comparable(record):
    """Return the fields of a record as values that `==` compares."""
    array = record.embedding
    embedding = None if array is None else (array.shape, str(array.dtype), array.tobytes())
    return record.key, record.origin, record.image, record.caption, record.further, embedding, record.problem


def read_records(path, format=None, *, part_sizes=(1, 2, 3, 1000), **options):
    """Return all records, after checking that every part size gives the same ones, with a new source for each part."""
    expected = None
    for count in part_sizes:
        source = open_source(path, format, records_per_part=count, **options)
        parts = source.parts()
        assert json.loads(json.dumps(parts)) == parts
        copy = pickle.dumps(source)
        records = []
        for part in reversed(parts):  # no part may rely on the state that another leaves
            alone = list(pickle.loads(copy).read(json.loads(json.dumps(part))))
            assert format in ("webdataset", None) or len(alone) <= count
            records = alone + records
        expected = expected or records
        assert [comparable(r) for r in records] == [comparable(r) for r in expected]
    keys = [record.key for record in expected]
    assert len(set(keys)) == len(keys)
    assert all(re.fullmatch(r"[A-Za-z0-9_-]+(/[A-Za-z0-9_-]+)*", key) for key in keys), keys
    assert all((record.image is None) == (record.problem is not None) for record in expected)
    return expected


def problems(records):
    """Return the reasons of rejected records by origin."""
    return {record.origin: record.problem[0] for record in records if record.problem}
