"""Aspect-ratio buckets: which size an image gets, and batches of one shape that any number of ranks can resume."""

import io
from collections import Counter
from itertools import islice

import numpy as np
import pytest
import torch
from encoders import Text, WordEncoder
from loading import open_loader
from PIL import Image
from samples import take

from imagen.data.embed.encode import encode_shards
from imagen.data.loading.buckets import Assignment, assign, bucket_sizes
from imagen.data.loading.config import DataConfig
from imagen.data.loading.interleave import Interleave
from imagen.data.shards.dataset import open_split
from imagen.data.shards.writer import ShardWriter
from imagen.errors import UserError

# Five shapes, (height, width), in unequal numbers; none divides into groups of 4 or 8.
SHAPES = {(16, 16): 11, (12, 20): 7, (20, 12): 5, (24, 8): 3, (8, 24): 2}
LIST = "16x16,20x12,12x20,8x24,24x8"
SIZES = bucket_sizes(LIST, 16, 4)


def jpeg(i: int, height: int, width: int, scale: int = 3) -> bytes:
    """An image whose colours are those of `i`, brighter towards the lower right."""
    y, x = np.mgrid[: height * scale, : width * scale] / (scale * max(height, width))
    pixels = np.stack([100 * x + 5 * i, 100 * y + 3 * i, np.full_like(x, 7 * i % 256)], -1)
    file = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(file, "JPEG", quality=95)
    return file.getvalue()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """28 images of five shapes in random order, in 4 shards, with embeddings."""
    folder = tmp_path_factory.mktemp("shapes")
    shapes = [shape for shape, count in SHAPES.items() for _ in range(count)]
    with ShardWriter(folder, 8) as writer:
        for i, n in enumerate(np.random.default_rng(5).permutation(len(shapes))):
            name = "x".join(map(str, shapes[n]))
            writer.write({"__key__": f"k{i:02d}-{name}", "jpg": jpeg(i, *shapes[n]), "txt": f"w{i}".encode()})
    encode_shards(folder, WordEncoder(), progress=False)
    return folder


def loader(folder, workers=0, flip=True, **options):
    assignment = assign(SIZES, open_split(folder).image_sizes())
    config = DataConfig(workers=workers, window=2, flip=flip)
    place = {"resolution": 16, "text": Text(), "batch_size": 8, "seed": 3, "assignment": assignment, "group": 8}
    return open_loader(folder, config, **place | options)


def samples(batches):
    return [
        (key, batch.image[j].shape, batch.image[j].numpy().tobytes(), batch.text[j][batch.text_mask[j]].tolist())
        for batch in batches
        for j, key in enumerate(batch.keys)
    ]


# Sizes


def test_automatic_buckets_have_at_most_the_squares_area():
    assert bucket_sizes("auto", 64, 8) == ((64, 64), (72, 56), (56, 72), (80, 48), (48, 80))
    for resolution, unit in ((64, 4), (256, 32), (1024, 64)):
        sizes = bucket_sizes("auto", resolution, unit)
        assert (resolution, resolution) in sizes and len(set(sizes)) == len(sizes)
        for height, width in sizes:
            assert height % unit == width % unit == 0 and (width, height) in sizes
            assert height * width <= resolution**2 < (height + unit) * (width + unit)
            assert max(height, width) <= 2 * min(height, width)


def test_listed_buckets_are_width_by_height():
    assert bucket_sizes("80x48, 64x64", 64, 8) == ((64, 64), (48, 80))


@pytest.mark.parametrize("buckets, message", [
    ("64x60", "64x60; sides must be multiples of 8"),
    ("0x64", "0x64"),
    ("64", "'64'; it must be auto or sizes as WIDTHxHEIGHT"),
    ("automatic", "'automatic'"),
    ("64x64,64x64", "64x64 twice"),
    (",".join(f"{8 * n}x8" for n in range(1, 259)), "258 sizes; at most 256"),
])  # fmt: skip
def test_sizes_that_cannot_be_are_refused(buckets, message):
    with pytest.raises(UserError, match=message):
        bucket_sizes(buckets, 64, 8)


def test_automatic_buckets_of_a_coarse_network_are_refused():
    with pytest.raises(UserError, match="sides must be divisible by 32, which leaves only 64x64"):
        bucket_sizes("auto", 64, 32)


def test_an_image_goes_to_the_nearest_aspect_ratio_that_it_fills():
    sizes = ((64, 64), (80, 48), (48, 80))
    images = np.array([(640, 640), (600, 400), (400, 600), (64, 400), (63, 63), (0, 0), (48, 80), (70, 71)])
    found = assign(sizes, images)
    assert found.bucket.tolist() == [0, 1, 2, 2, Assignment.TOO_SMALL, Assignment.UNREADABLE, 2, 0]
    assert found.upsampled == 0 and found.count(Assignment.TOO_SMALL) == 1
    found = assign(sizes, images, max_enlargement=1.1)
    assert found.bucket[4] == 0 and found.upsampled == 1


def test_the_index_has_the_sizes_of_upright_images(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    members = {}
    for name, image_format in (("jpg", "JPEG"), ("png", "PNG"), ("webp", "WEBP")):
        for turned in (False, True):
            file = io.BytesIO()
            Image.new("RGB", (40, 30)).save(file, image_format, **({"exif": exif} if turned else {}))
            members[f"{name}-{turned}"] = {name: file.getvalue()}
    members["masters"] = {"64.png": members["png-False"]["png"], "8.png": b"not read"}
    members["none"] = {"txt": b"a"}
    members["broken"] = {"jpg": b"\xff\xd8 broken"}
    with ShardWriter(tmp_path) as writer:
        for key, parts in members.items():
            writer.write({"__key__": key, **parts})
    dataset = open_split(tmp_path)
    found = {dataset.key(i): dataset.image_size(i) for i in range(len(dataset))}
    assert found == {
        **{f"{name}-False": (30, 40) for name in ("jpg", "png", "webp")},
        **{f"{name}-True": (40, 30) for name in ("jpg", "png", "webp")},
        "masters": (30, 40), "none": (0, 0), "broken": (0, 0),
    }  # fmt: skip
    assert dataset.image_sizes().tolist() == [list(found[dataset.key(i)]) for i in range(len(dataset))]


# Proportions


@pytest.mark.parametrize("shares", [[10, 7, 0, 100, 1], [1], [3, 3], [1, 10**6]])
def test_streams_are_merged_in_proportion_and_none_loses_an_event(shares):
    merged = Interleave(1, shares, purpose=3)
    seen = [0] * len(shares)
    for index in range(3000):
        stream, k = merged[index]
        assert k == seen[stream]
        seen[stream] += 1
        for count, share in zip(seen, shares, strict=True):  # at most one behind or ahead for each stream
            assert abs(count - (index + 1) * share / sum(shares)) <= len(shares)
    anywhere = Interleave(1, shares, purpose=3)
    assert anywhere[2999] == (stream, k)
    far = [anywhere[10**12 + n] for n in range(600)]
    for stream in range(len(shares)):
        numbers = [k for s, k in far if s == stream]
        assert numbers == list(range(numbers[0], numbers[0] + len(numbers))) if numbers else True


def test_another_seed_merges_in_another_order():
    assert [Interleave(1, [1, 1], purpose=3)[i] for i in range(50)] != [
        Interleave(2, [1, 1], purpose=3)[i] for i in range(50)
    ]


# Batches


@pytest.fixture(scope="module")
def stream(folder):
    return samples(take(loader(folder), 40))


def test_each_batch_has_one_shape_and_each_image_the_bucket_of_its_size(folder, stream):
    for batch in take(loader(folder), 40):
        height, width = batch.image.shape[-2:]
        assert all(key.endswith(f"-{height}x{width}") for key in batch.keys)
    assert {shape[1:] for _, shape, *_ in stream} == set(SHAPES)


def test_each_bucket_shows_every_sample_once_per_epoch_and_gets_its_share(stream):
    keys = [key for key, *_ in stream]
    for (height, width), count in SHAPES.items():
        mine = [key for key in keys if key.endswith(f"-{height}x{width}")]
        for first in range(0, len(mine) - count + 1, count):
            assert len(set(mine[first : first + count])) == count
        assert abs(len(mine) - len(keys) * count / 28) <= 8 * len(SHAPES)


@pytest.mark.parametrize("workers, world_size", [(0, 2), (2, 1), (2, 4), (0, 8), (1, 2)])
def test_resumed_at_random_steps_on_other_ranks_and_workers_the_batches_are_the_same(
    folder, stream, workers, world_size
):
    for start in np.random.default_rng([workers, world_size]).integers(0, 36, 2).tolist():
        place = {"world_size": world_size, "position": 8 * start}
        ranks = [take(loader(folder, workers, rank=rank, **place), 3) for rank in range(world_size)]
        found = samples(batches[k] for k in range(3) for batches in ranks)
        assert found == stream[8 * start : 8 * (start + 3)]


def test_micro_batches_and_several_buckets_per_batch_give_the_same_samples(folder):
    whole = samples(take(loader(folder, group=4, batch_size=4), 16))
    parts = [take(loader(folder, group=4, batch_size=4, rank=r, world_size=2, position=32), 8) for r in range(2)]
    assert samples(batches[k] for k in range(8) for batches in parts) == whole[32:]
    wide = [take(loader(folder, group=4, batch_size=8, rank=r, world_size=2), 8) for r in range(2)]
    assert samples(batches[k] for k in range(8) for batches in wide) == whole
    assert any(one.image.shape != two.image.shape for one, two in zip(*wide, strict=True))  # ranks differ in shape
    shapes = {tuple(shape for _, shape, *_ in whole[k : k + 8 : 4]) for k in range(0, 64, 8)}
    assert any(len(set(pair)) > 1 for pair in shapes)  # a batch of 8 may have two shapes


def test_a_group_that_is_split_is_refused(folder):
    for options in ({"group": 6}, {"position": 4}):
        with pytest.raises(UserError, match="of one bucket do not divide"):
            loader(folder, **options)


def test_a_bad_image_is_replaced_by_one_of_its_bucket(tmp_path):
    with ShardWriter(tmp_path) as writer:
        for i in range(12):
            shape = (16, 16) if i % 2 else (12, 20)
            file = io.BytesIO()
            Image.open(io.BytesIO(jpeg(i, *shape))).save(file, "PNG")
            data = file.getvalue()  # two of them end after the header
            writer.write({"__key__": f"k{i}", "png": data[:60] if i < 2 else data, "txt": b"x"})
    batches = take(loader(tmp_path, text=None, batch_size=2, group=2), 12)
    assert all(len({int(key[1:]) % 2 for key in batch.keys}) == 1 for batch in batches)
    problems = Counter(problem.partition(" ")[0] for batch in batches for problem in batch.problems)
    assert set(problems) == {"k0", "k1"}


def test_images_that_are_too_small_for_all_buckets_are_a_user_error(folder):
    assignment = assign(bucket_sizes("1024x1024", 1024, 4), open_split(folder).image_sizes())
    with pytest.raises(UserError, match="no image is large enough for 1024x1024; train at a smaller size"):
        loader(folder, assignment=assignment)


# Pixels


def test_an_image_is_reduced_to_its_bucket_as_pillow_does(tmp_path):
    data = jpeg(9, 12, 20, scale=10)
    with ShardWriter(tmp_path) as writer:
        writer.write({"__key__": "a", "jpg": data, "txt": b"x"})
    (batch,) = take(loader(tmp_path, text=None, batch_size=1, group=1), 1)
    expected = np.asarray(Image.open(io.BytesIO(data)).resize((20, 12), Image.Resampling.BICUBIC))
    assert np.abs(batch.image[0].permute(1, 2, 0).numpy().astype(int) - expected).max() <= 3


def test_super_resolution_pairs_and_crops_of_wide_images_show_the_same_region(folder):
    options = {"resolution": 16, "low_resolution": 8, "text": None}
    whole = take(loader(folder, flip=False, **options), 10)
    for batch in whole:
        height, width = batch.image.shape[-2:]
        assert batch.low_res.shape[-2:] == (height // 2, width // 2)
        again = torch.nn.functional.interpolate(batch.image.float(), batch.low_res.shape[-2:], mode="area")
        assert (again - batch.low_res).abs().mean() < 4
    assignment = assign(SIZES, open_split(folder).image_sizes())
    config = DataConfig(workers=0, window=2, crop=8)
    lefts = set()
    cropped = open_loader(folder, config, batch_size=8, seed=3, assignment=assignment, group=8, **options)
    for batch, full in zip(islice(cropped, 10), whole, strict=True):
        assert batch.keys == full.keys
        assert batch.image.shape[-2:] == (8, 8) and batch.low_res.shape[-2:] == (4, 4)
        for j in range(8):
            windows = full.image[j].unfold(1, 8, 2).unfold(2, 8, 2)  # [C, top, left, 8, 8]
            (top, left), *_ = (windows == batch.image[j][:, None, None]).all(-1).all(-1).all(0).nonzero().tolist()
            low = full.low_res[j][:, top : top + 4, left : left + 4]
            assert torch.equal(low, batch.low_res[j])
            lefts.add(left)
    assert max(lefts) > 4  # beyond the centre square of the wide images
