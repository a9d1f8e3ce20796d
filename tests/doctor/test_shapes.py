"""Runs with aspect-ratio buckets are measured on images of the buckets' shapes."""

import patients
import pytest
import torch
from patients import discs, wrapped, write_shards

from imagen.cascade import Cascade
from imagen.doctor.subject import Subject

SHAPES = ((16, 16), (12, 20), (20, 12))  # height, width
BUCKETS = "16x16,20x12,12x20"  # width x height


@pytest.fixture(scope="module")
def shaped(tmp_path_factory):
    """Shards of discs in three shapes, and a run with a bucket for each. To be read only."""
    folder = tmp_path_factory.mktemp("shaped")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    images = discs(96, shapes=SHAPES), discs(48, seed=1, shapes=SHAPES)
    shards = write_shards(folder / "shards", *images)
    run = patients.train_discs(folder / "run", shards, 100, BUCKETS)
    torch.set_num_threads(threads)
    return shards, run


def test_a_healthy_run_is_measured_in_the_shapes_of_its_buckets(shaped, found):
    shards, run = shaped
    report = found.report(run, data=shards)
    assert report.findings == ()
    assert {check.name for check in report.checks if check.skipped} == {"super-resolution"}
    exported = found.report(run / "export", "loss by noise level", data=shards)  # a cascade records the sizes
    for each in (report, exported):
        (measured,) = next(check.measured for check in each.checks if check.name == "loss by noise level")
        assert measured.numbers["images_per_shape"] == {"16x16": 11, "20x12": 11, "12x20": 11}


def test_images_have_the_shape_of_their_bucket(shaped):
    shards, run = shaped
    subject = Subject(run, data=shards, encoder=patients.Words())
    batches = subject.batches(0)
    assert {tuple(batch.image.shape[-2:]) for batch in batches} == set(SHAPES)
    assert all(len(set(batch.captions)) > 1 for batch in batches)
    assert len(subject.batch(0)) == 32


def test_a_network_that_fails_on_other_shapes_than_squares_is_found(shaped, found):
    shards, run = shaped

    def change(network, x, noise, conditions):
        output = network(x, noise, **conditions)
        return output if x.shape[-1] == x.shape[-2] else -output

    cascade = wrapped(Cascade.load(run), change)
    assert found("c", "loss by noise level", cascade=cascade, data=shards) == {"network-untrained"}


def test_exchanged_channels_are_found_in_the_shapes_of_buckets(shaped, tmp_path, found):
    images = discs(48, seed=1, shapes=SHAPES[1:])
    shards = write_shards(tmp_path / "bgr", images, change=lambda image: image[..., ::-1])
    assert found(shaped[1], "channel order", data=shards) == {"channels-swapped"}
