"""Several data sets in one stream, mixed by weight."""

import io
from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
from encoders import Text, WordEncoder
from PIL import Image
from samples import take

from imagen.data.embed.encode import encode_shards
from imagen.data.embed.sidecar import Embeddings
from imagen.data.loading.buckets import assign, bucket_sizes
from imagen.data.loading.config import DataConfig
from imagen.data.loading.loader import Loader
from imagen.data.shards.dataset import open_split
from imagen.data.shards.mixture import MixedDataset, MixedEmbeddings, Portion, parse_portion, portions_of
from imagen.data.shards.writer import ShardWriter
from imagen.errors import UserError

COUNTS = {"a": 23, "b": 9, "c": 40}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Three data sets of 23, 9 and 40 square and wide images."""
    root = tmp_path_factory.mktemp("sets")
    for name, count in COUNTS.items():
        with ShardWriter(root / name, 7) as writer:
            for i in range(count):
                file = io.BytesIO()
                size = (24, 16) if i % 3 == 0 else (16, 16)
                Image.new("RGB", size, (ord(name), i, 0)).save(file, "png")
                writer.write({"__key__": f"{name}{i:02d}", "png": file.getvalue(), "txt": f"w{i % 9}".encode()})
        encode_shards(root / name, WordEncoder(), progress=False)
    return root


def mixture(folders, **weights):
    parts = [open_split(folders / name) for name in weights]
    return MixedDataset(parts, [None if weight is None else Fraction(weight) for weight in weights.values()])


def loader(dataset, workers=0, **options):
    embeddings = MixedEmbeddings(dataset, [Embeddings(part, Text()) for part in dataset.parts])
    place = {"resolution": 16, "batch_size": 10, "seed": 4, "embeddings": embeddings}
    return Loader(dataset, DataConfig(workers=workers, window=2), **place | options)


def samples(batches):
    return [
        (key, batch.image[j].numpy().tobytes(), batch.text[j][batch.text_mask[j]].tolist())
        for batch in batches
        for j, key in enumerate(batch.keys)
    ]


def test_each_source_gets_its_share_of_every_stretch_and_all_of_its_samples(folders):
    dataset = mixture(folders, a="7/10", b="3/10")
    keys = [key for batch in take(loader(dataset), 60) for key in batch.keys]
    for end in range(0, 601, 50):
        assert abs(sum(key[0] == "a" for key in keys[:end]) - 0.7 * end) <= 2
    for name in "ab":
        mine, count = [key for key in keys if key[0] == name], COUNTS[name]
        for first in range(0, len(mine) - count, count):
            assert len(set(mine[first : first + count])) == count


def test_without_weights_every_sample_is_equally_likely(folders):
    dataset = mixture(folders, a=None, b=None, c=None)
    assert dataset.shares == [Fraction(23, 72), Fraction(9, 72), Fraction(40, 72)]
    keys = Counter(key[0] for batch in take(loader(dataset), 72) for key in batch.keys)
    assert all(abs(keys[name] - 10 * count) <= 3 for name, count in COUNTS.items())


@pytest.mark.parametrize("workers, world_size, start", [(2, 1, 7), (0, 5, 13), (1, 2, 24)])
def test_a_mixture_resumes_on_other_ranks_and_workers(folders, workers, world_size, start):
    dataset = mixture(folders, a="1/2", b="1/3", c="1/6")
    whole = samples(take(loader(dataset), 27))
    ranks = [
        take(loader(dataset, workers, position=10 * start, rank=rank, world_size=world_size), 3)
        for rank in range(world_size)
    ]
    assert samples(batches[k] for k in range(3) for batches in ranks) == whole[10 * start : 10 * (start + 3)]


def test_images_and_texts_are_those_of_the_right_source(folders):
    dataset = mixture(folders, a="1/2", b="1/4", c="1/4")
    for batch in take(loader(dataset), 10):
        for j, key in enumerate(batch.keys):
            assert batch.image[j][:2, 0, 0].tolist() == [ord(key[0]), int(key[1:])]
            text = WordEncoder().encode([batch.captions[j]])[0].bfloat16().float()
            assert batch.text[j][batch.text_mask[j]].tolist() == text.tolist()
    assert dataset.key(0) == "a00" and dataset.key(len(dataset) - 1) == "c39"
    assert dataset.tar_path(dataset.locate(23 + 8)[0]).name == "00001.tar"


def test_buckets_of_a_mixture_have_all_sources(folders):
    dataset = mixture(folders, a="1/2", c="1/2")
    assignment = assign(bucket_sizes("16x16,24x16", 16, 4), dataset.image_sizes())
    seen = Counter()
    for batch in take(loader(dataset, assignment=assignment, group=10), 60):
        wide = batch.image.shape[-1] == 24
        assert all((int(key[1:]) % 3 == 0) == wide for key in batch.keys)
        assert {key[0] for key in batch.keys} == {"a", "c"}
        seen.update((key[0], wide) for key in batch.keys)
    assert abs(seen["a", True] / 300 - 8 / 23) < 0.1 and abs(seen["c", True] / 300 - 14 / 40) < 0.1


def test_one_data_set_has_the_same_order_and_fingerprint_as_alone(folders):
    alone, dataset = open_split(folders / "a"), mixture(folders, a=None)
    options = {"resolution": 16, "batch_size": 10, "seed": 4}
    config = DataConfig(workers=0, window=2)
    assert [batch.keys for batch in take(Loader(alone, config, **options), 9)] == [
        batch.keys for batch in take(Loader(dataset, config, **options), 9)
    ]
    assert dataset.fingerprint() == alone.fingerprint() != mixture(folders, a="1/2", b="1/2").fingerprint()


def test_weights_are_parsed_exactly(tmp_path):
    assert parse_portion("a/b=0.7") == Portion(tmp_path.__class__("a/b"), Fraction(7, 10))
    assert parse_portion("a").weight is None
    (tmp_path / "x=1").mkdir()
    assert parse_portion(str(tmp_path / "x=1")).weight is None
    assert [portion.weight for portion in portions_of([("a", 2), ("b", 0.5)])] == [2, Fraction(1, 2)]
    assert np.isclose(float(portions_of([("a", 1e-3)])[0].weight), 1e-3)


@pytest.mark.parametrize("texts, message", [
    (["a=x"], "'x' is not a weight"),
    (["a=0"], "the weight is 0; it must be above 0"),
    (["a=-1", "b=1"], "the weight is -1"),
    (["a=nan"], "the weight is nan"),
    (["a=1", "b"], "b has no weight, but others have"),
    (["a=1", "a=2"], "a is given twice"),
    ([], "no data"),
])  # fmt: skip
def test_weights_that_cannot_be_are_refused(texts, message):
    with pytest.raises(UserError, match=message):
        portions_of([parse_portion(text) for text in texts])
