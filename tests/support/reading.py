"""Check a source: parts are JSON, cover each record once for any part size, and are read independently."""

import io
import json
import pickle
import re

import numpy as np
from PIL import Image

from imagen.data.sources import open_source


def pictures(count, form="PNG"):
    """Return encoded images that differ."""
    found = []
    for i in range(count):
        file = io.BytesIO()
        pixels = np.random.default_rng(i).integers(0, 256, (4 + i % 3, 5, 3), np.uint8)
        Image.fromarray(pixels).save(file, form)
        found.append(file.getvalue())
    return found


def plain(record):
    """Return a record as values that `==` compares."""
    array = record.embedding
    embedding = None if array is None else (array.shape, str(array.dtype), array.tobytes())
    return record.key, record.origin, record.image, record.caption, record.further, embedding, record.problem


def read(path, format=None, *, cuts=(1, 2, 3, 1000), **options):
    """Return all records, after checking that every part size gives them, with a new source for each part."""
    whole = None
    for count in cuts:
        source = open_source(path, format, records_per_part=count, **options)
        parts = source.parts()
        assert json.loads(json.dumps(parts)) == parts
        copy = pickle.dumps(source)
        records = []
        for part in reversed(parts):  # in no order, and with nothing left over from another part
            alone = list(pickle.loads(copy).read(json.loads(json.dumps(part))))
            assert format in ("webdataset", None) or len(alone) <= count
            records = alone + records
        whole = whole or records
        assert [plain(r) for r in records] == [plain(r) for r in whole]
    keys = [record.key for record in whole]
    assert len(set(keys)) == len(keys)
    assert all(re.fullmatch(r"[A-Za-z0-9_-]+(/[A-Za-z0-9_-]+)*", key) for key in keys), keys
    assert all((record.image is None) == (record.problem is not None) for record in whole)
    return whole


def problems(records):
    """Return the reasons of rejected records by origin."""
    return {record.origin: record.problem[0] for record in records if record.problem}
