"""Training with aspect-ratio buckets: resume, ranks, sample grids, and what a stage records of its sizes."""

import dataclasses
import io
import json
import logging
from fractions import Fraction
from itertools import islice

import numpy as np
import pytest
import torch
from encoders import ToyEncoder
from PIL import Image
from ranks import run_on_ranks
from run_state import assert_same, last_checkpoint
from toy import experiment, stopping_at, train_on_rank, train_quietly

from imagen.cascade import Cascade
from imagen.data.embed.encode import encode_shards
from imagen.data.loading.bench import bench
from imagen.data.loading.buckets import Assignment, assign
from imagen.data.loading.config import DataConfig
from imagen.data.loading.loader import Loader
from imagen.data.loading.stream_order import Source, StreamOrder
from imagen.data.shards.dataset import open_split
from imagen.data.shards.index import index_path
from imagen.data.shards.mapped import MappedTensors
from imagen.data.shards.writer import ShardWriter
from imagen.errors import UserError
from imagen.tensors import save_tensors
from imagen.train.experiment import check, override
from imagen.train.export import StageExport
from imagen.train.grid import SampleGrid
from imagen.train.shapes import leave_out_small

SHAPES = ((16, 16), (12, 20), (20, 12))
DATA = DataConfig(workers=0, buckets="auto", bucket_batch=4)


@pytest.fixture(scope="session")
def shaped(tmp_path_factory):
    """45 training and 12 held-out images of three shapes, three images that are too small and one that is broken."""
    folder = tmp_path_factory.mktemp("shaped")
    rng = np.random.default_rng(1)
    for split, count in (("train", 45), ("heldout", 12)):
        with ShardWriter(folder / split, 20) as writer:
            for i in range(count + 3):
                height, width = (8, 8) if i >= count else SHAPES[i % 3]
                file = io.BytesIO()
                Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8)).save(file, "png")
                writer.write({"__key__": f"{split}{i:03d}", "png": file.getvalue(), "txt": b"red"})
            writer.write({"__key__": "broken", "png": b"\x89PNG", "txt": b"red"})
    encode_shards(folder, ToyEncoder(), progress=False)
    return folder


WHAT = experiment(data=DATA, steps=9, log_every=3, gap_every=9, gap_samples=8, checkpoint_every=3)


@pytest.fixture(scope="module")
def uninterrupted(shaped, tmp_path_factory):
    run = tmp_path_factory.mktemp("buckets")
    reported = []
    assert train_quietly(WHAT, shaped, run, report=reported.append, callbacks=[SampleGrid(), StageExport()]).finished
    return run, reported


def test_a_run_resumes_exactly(shaped, tmp_path, rows, uninterrupted):
    assert train_quietly(WHAT, shaped, tmp_path, report=stopping_at(3)).step == 4
    other = dataclasses.replace(WHAT, data=dataclasses.replace(DATA, workers=2))
    assert train_quietly(other, shaped, tmp_path).finished
    whole, parts = last_checkpoint(uninterrupted[0]), last_checkpoint(tmp_path)
    assert whole.pop("config") != parts.pop("config")  # the number of workers
    assert_same(parts, whole)
    assert rows(tmp_path) == rows(uninterrupted[0])


def test_two_ranks_with_micro_batches_of_one_shape_compute_the_same_losses(shaped, tmp_path, rows, uninterrupted):
    what = dataclasses.replace(WHAT, train=dataclasses.replace(WHAT.train, micro_batch=2, gap_every=0, gap_samples=2))
    run_on_ranks(2, train_on_rank, what, shaped, tmp_path)
    ours, theirs = rows(tmp_path), rows(uninterrupted[0])
    assert [row["step"] for row in ours] == [3, 6, 9]
    for mine, other in zip(ours, theirs, strict=True):
        for name in ("loss", "eps_mse", "grad_norm", "loss_t0", "loss_t3"):
            assert mine[name] == pytest.approx(other[name], rel=1e-4), name


def test_small_and_broken_images_are_counted_and_not_used(uninterrupted):
    _, reported = uninterrupted
    assert "images per bucket (width x height): 16x16 15, 12x20 15, 20x12 15" in reported
    assert any(line.startswith("3 of 49 images are too small for any bucket and are not used") for line in reported)
    assert "1 of 49 samples have no readable image and are not used" in reported


def test_images_that_are_upsampled_are_counted_without_buckets_too(shaped, tmp_path):
    reported = []
    data = DataConfig(workers=0, max_enlargement=2.0)
    train_quietly(experiment(data=data, steps=1, gap_samples=2), shaped, tmp_path, report=reported.append)
    # 30 of 12 x 20 pixels and 3 of 8 x 8
    assert "33 of 49 images are upsampled, by at most data.max_enlargement 2" in reported


def test_small_images_are_left_out_without_buckets_too(shaped, tmp_path, rows):
    reported = []
    what = experiment(data=DataConfig(workers=0, max_bad=0.0), steps=9, log_every=9, gap_samples=2)
    assert train_quietly(what, shaped, tmp_path, report=reported.append).finished
    # 30 of 12 x 20 pixels and 3 of 8 x 8
    assert any(line.startswith("33 of 49 images are too small for 16x16 and are not used") for line in reported)
    assert "1 of 49 samples have no readable image and count as bad samples (data.max_bad 0)" in reported
    assert 0 < sum(row.get("bad_samples", 0) for row in rows(tmp_path)) < 10  # the broken one, once per epoch


def test_without_small_images_the_order_is_as_if_sizes_were_unknown(shaped):
    dataset = open_split(shaped)
    stage = WHAT.stage
    assert leave_out_small(stage, DataConfig(max_enlargement=2.0), dataset) is None  # one cannot be read
    every = assign([(16, 16)], dataset.image_sizes())
    assert leave_out_small(stage, DataConfig(), dataset).bucket.tolist() == [
        0 if bucket == Assignment.UNREADABLE else bucket for bucket in every.bucket.tolist()
    ]
    sources = [Source(dataset.sizes, Fraction(1))]
    filled = Assignment(every.sizes, np.zeros(len(dataset), np.int16), 0)
    plain, squares = StreamOrder(1, 2, sources), StreamOrder(1, 2, sources, filled, 8)
    first = [next(plain.candidates(position)) for position in range(200)]
    assert [next(squares.candidates(position)) for position in range(200)] == first


def test_a_position_within_a_batch_is_allowed_with_one_shape(shaped):
    dataset = open_split(shaped)
    options = {"resolution": 16, "assignment": leave_out_small(WHAT.stage, DataConfig(), dataset), "seed": 1}
    config = DataConfig(workers=0)
    (whole,) = islice(Loader(dataset, config, batch_size=12, **options), 1)
    (part,) = islice(Loader(dataset, config, batch_size=8, position=4, **options), 1)
    assert part.keys == whole.keys[4:]


def test_the_sample_grid_and_the_export_have_the_shapes(uninterrupted, caplog):
    run, _ = uninterrupted
    assert (run / "samples" / "step-00000009.png").exists()
    (stage,) = json.loads((run / "export" / "cascade.json").read_text())["stages"]
    assert stage["config"]["sizes"] == [[16, 16], [20, 12], [12, 20]]
    assert json.loads((run / "config.json").read_text())["stage"]["sizes"] == stage["config"]["sizes"]
    cascade = Cascade.load(run / "export")
    text = torch.zeros(1, 8)
    with caplog.at_level(logging.WARNING):
        (image,) = cascade.sample([text], size=(12, 20), steps=1, device="cpu", progress=False)
        assert image.size == (20, 12) and not caplog.messages
        cascade.sample([text], size=(12, 24), steps=1, device="cpu", progress=False)
    assert caplog.messages == [
        "stage 16 was trained on images of 16x16, 20x12, 12x20 (height x width) and outputs 12x24 here: objects may "
        "repeat or be cut"
    ]


def test_super_resolution_trains_on_wide_images_and_on_crops_of_them(shaped, tmp_path):
    unet = dataclasses.replace(WHAT.stage.unet, low_res=True)
    for crop in (None, 8):
        data = dataclasses.replace(DATA, crop=crop)
        what = experiment(data=data, unet=unet, low_resolution=8, steps=3, gap_samples=8)
        run = tmp_path / str(crop)
        assert train_quietly(what, shaped, run, callbacks=[SampleGrid()]).finished
        sizes = json.loads((run / "config.json").read_text())["stage"]["sizes"]
        assert len(sizes) == (3 if crop is None else 0)  # crops say nothing of the size of images
        assert (run / "samples" / "step-00000003.png").exists()


def test_a_run_of_squares_cannot_resume_with_buckets(shaped, tmp_path):
    what = dataclasses.replace(WHAT, train=dataclasses.replace(WHAT.train, steps=1))
    train_quietly(dataclasses.replace(what, data=DataConfig(workers=0, max_bad=1.0)), shaped, tmp_path)
    with pytest.raises(UserError, match=r"was started with data\.bucket_batch = null, not 4"):
        train_quietly(what, shaped, tmp_path)


def test_an_index_of_an_earlier_version_gets_the_sizes(shaped, tmp_path):
    with ShardWriter(tmp_path) as writer:
        for i in range(8):
            file = io.BytesIO()
            Image.new("RGB", (20, 12), (i, i, i)).save(file, "png")
            writer.write({"__key__": f"k{i}", "png": file.getvalue(), "txt": b"red"})
    path = index_path(tmp_path / "00000.tar")
    index = MappedTensors(path, "")
    names = ("extension", "offset", "size", "first_member", "key", "first_key_byte")
    old = {name: np.array(index[name]) for name in names}
    new = path.read_bytes()
    path.unlink()
    save_tensors(old, path, index.metadata)
    encode_shards(tmp_path, ToyEncoder(), progress=False)
    assert path.read_bytes() == new
    path.unlink()
    save_tensors(old, path, index.metadata)
    data = dataclasses.replace(DATA, buckets="20x12")
    assert train_quietly(experiment(data=data, steps=1, gap_samples=2), tmp_path, tmp_path / "run").finished


@pytest.mark.parametrize("arguments, message", [
    (["--data.buckets", "18x16"], "data.buckets has 18x16; sides must be multiples of 4"),
    (["--data.bucket_batch", "4"], "data.bucket_batch is set without data.buckets"),
    (["--data.buckets", "auto", "--data.bucket_batch", "3"], "is 3; it must divide train.batch_size 8"),
    (["--data.buckets", "auto", "--data.bucket_batch", "4", "--train.micro_batch", "3"], "micro-batch"),
    (["--data.buckets", "auto", "--data.bucket_batch", "8", "--train.batch_size", "16", "--train.micro_batch", "16",
      "--data.crop", "20"], "data.crop is 20"),
    (["--data.buckets", "auto", "--data.crop", "16"], "data.crop is 16, but the bucket 12x20 is smaller"),
    (["--data.buckets", "auto", "--data.bucket_batch", "0"], "bucket_batch is 0; it must be at least 1"),
])  # fmt: skip
def test_settings_that_do_not_fit_are_refused(arguments, message):
    with pytest.raises(UserError, match=message):
        check(override(experiment(), arguments))


def test_the_data_benchmark_loads_the_shapes_of_buckets(shaped):
    """Without buckets it loads squares, which most of these images do not fill."""
    found = bench(shaped, dataclasses.replace(DATA, max_bad=1.0), resolution=16, seconds=1e-3, unit=4)
    assert found["images_per_bucket"] == {"16x16": 15, "20x12": 15, "12x20": 15} and found["skipped"] == 0
    squares = bench(shaped, DataConfig(workers=0, max_bad=1.0), resolution=16, seconds=1e-3)
    assert squares["images_per_bucket"] is None and squares["skipped"] > 0
    with pytest.raises(UserError, match="sides must be multiples of 8"):
        bench(shaped, DataConfig(workers=0, buckets="18x16"), resolution=16)
