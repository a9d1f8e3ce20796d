"""Test that the numbers of an evaluation equal their definitions, also after interruptions and on several ranks."""

import io
import json
import shutil
import sys
import weakref

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from cascades import QUICK, TEXT, WordTokenEncoder, cascade, stage
from command_line import run_imagen
from PIL import Image

from imagen.cascade import Cascade
from imagen.data.shards.dataset import open_split
from imagen.data.shards.writer import ShardWriter
from imagen.errors import UserError
from imagen.evaluate import generated, real, run
from imagen.evaluate.extractors import base
from imagen.evaluate.files import write_arrays
from imagen.evaluate.metrics.frechet import frechet_distance, moments
from imagen.evaluate.real import choose, images, real_features
from imagen.evaluate.report import write_report
from imagen.evaluate.run import evaluate
from imagen.evaluate.sweep import cascade_gap, sweep

OPTIONS = {**QUICK, "metrics": ("fid", "kid", "prdc"), "n": 20, "stages": 1, "steps": 2, "batch_size": 4}


class Coarse:
    """A stand-in for Inception: the mean colour of each quarter of an image."""

    name, description = "coarse", "2x2 mean colours"

    def __init__(self) -> None:
        self.seen = 0

    def __call__(self, images_BCHW: torch.Tensor) -> torch.Tensor:
        self.seen += len(images_BCHW)
        return F.adaptive_avg_pool2d(images_BCHW.float(), 2).flatten(1) / 255


@pytest.fixture
def coarse(monkeypatch):
    extractor = Coarse()
    monkeypatch.setitem(base.EXTRACTORS, "inception", lambda argument, device: extractor)
    monkeypatch.setattr(generated, "PART", 8)
    return extractor


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards")
    rng = np.random.default_rng(0)
    for split, count in (("train", 30), ("heldout", 24)):
        with ShardWriter(folder / split) as writer:
            for number in range(count):
                stream = io.BytesIO()
                Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(stream, "PNG")
                caption = f"image {number} of noise".encode()
                writer.write({"__key__": f"{number:03d}", "16.png": stream.getvalue(), "txt": caption})
    return folder


def test_numbers_are_those_of_the_images(shards, coarse, tmp_path):
    """FID of the report is the distance between the features of the images it saved and of the split's."""
    report = evaluate(cascade(), shards, tmp_path / "a", save_images=20, cache=tmp_path / "cache", **OPTIONS)
    files = sorted((tmp_path / "a" / "images").glob("*.png"))
    made = torch.stack([torch.from_numpy(np.array(Image.open(file))).permute(2, 0, 1) for file in files])
    dataset = open_split(shards, "heldout")
    real = torch.cat(list(images(dataset, range(24), 16)))
    expected = frechet_distance(moments(coarse(real).numpy()), moments(coarse(made).numpy()))
    assert len(files) == 20 and report["metrics"]["fid"]["value"] == pytest.approx(expected, rel=1e-9)
    assert report["reference"]["images"] == 24 and report["images"] == 20
    assert set(report["metrics"]) == {"fid", "kid", "precision", "recall", "density", "coverage"}
    assert json.loads((tmp_path / "a" / "report.json").read_text()) == report


def test_interrupted_and_on_two_ranks_it_gives_the_same_numbers(shards, coarse, tmp_path):
    whole = evaluate(cascade(), shards, tmp_path / "a", cache=tmp_path / "cache", **OPTIONS)
    seen = coarse.seen
    (tmp_path / "a" / "features" / "00001.safetensors").unlink()  # as if it had been killed before this part
    again = evaluate(cascade(), shards, tmp_path / "a", cache=tmp_path / "cache", **OPTIONS)
    assert coarse.seen == seen + 8, "one part sampled again, real images from the cache"
    assert evaluate(cascade(), shards, tmp_path / "b", cache=tmp_path / "other", rank=1, ranks=2, **OPTIONS) is None
    ranks = evaluate(cascade(), shards, tmp_path / "b", cache=tmp_path / "other", rank=0, ranks=2, **OPTIONS)
    assert whole["metrics"] == again["metrics"] == ranks["metrics"]
    saved = evaluate(cascade(), shards, tmp_path / "a", save_images=11, cache=tmp_path / "cache", **OPTIONS)
    assert saved["metrics"] == whole["metrics"]
    assert {f"{number:05d}.png" for number in range(11)} <= {file.name for file in (tmp_path / "a/images").iterdir()}


def test_a_job_resumes_with_another_batch_size(shards, coarse, tmp_path):
    """After it ran out of memory, for example: each image is measured once, whatever the batches were."""
    given = {"cache": tmp_path / "cache", **OPTIONS}
    whole = evaluate(cascade(), shards, tmp_path / "a", **given)
    for folder in ("a", "b"):
        evaluate(cascade(), shards, tmp_path / folder, **{**given, "batch_size": 3})
        for number in (1, 2):
            (tmp_path / folder / "features" / f"{number:05d}.safetensors").unlink()
        again = evaluate(cascade(), shards, tmp_path / folder, **{**given, "batch_size": 5})
        assert again["metrics"]["fid"]["value"] == pytest.approx(whole["metrics"]["fid"]["value"], rel=1e-3)


def test_features_of_another_job_or_program_are_refused(shards, coarse, tmp_path):
    """A file with other images than expected, or with other arrays, is named."""
    given = {"cache": tmp_path / "cache", **OPTIONS}
    evaluate(cascade(), shards, tmp_path / "a", **given)
    (cached,) = (tmp_path / "cache").iterdir()
    part = tmp_path / "a" / "features" / "00001.safetensors"
    for path, arrays in (
        (part, {"inception": np.zeros((7, 12), np.float32)}),
        (part, {"clip": np.zeros((8, 12), np.float32)}),
        (cached, {"features": np.zeros((23, 12), np.float32)}),
        (cached, {"other": np.zeros((24, 12), np.float32)}),
    ):
        before = path.read_bytes()
        write_arrays(path, arrays)
        with pytest.raises(UserError, match=rf"{path.name} does not have the features of .* images; delete it"):
            evaluate(cascade(), shards, tmp_path / "a", **given)
        path.write_bytes(before)


def test_features_that_are_not_finite_are_an_error(shards, coarse, tmp_path, monkeypatch):
    monkeypatch.setattr(Coarse, "__call__", lambda self, images_BCHW: torch.full((len(images_BCHW), 4), torch.nan))
    with pytest.raises(UserError, match="2x2 mean colours: the features of 44 images are not finite"):
        evaluate(cascade(), shards, tmp_path / "a", cache=tmp_path / "cache", **OPTIONS)


def test_it_warns_of_fewer_images_than_features(shards, coarse, tmp_path, caplog):
    given = {"cache": tmp_path / "cache", **OPTIONS, "metrics": ("fid", "kid")}
    evaluate(cascade(), shards, tmp_path / "a", **given)
    assert not caplog.messages
    evaluate(cascade(), shards, tmp_path / "b", **{**given, "n": 12})
    (message,) = caplog.messages
    assert "fid: 12 generated and 24 real images for 12 features" in message


def test_another_job_in_the_folder_is_refused(shards, coarse, tmp_path):
    evaluate(cascade(), shards, tmp_path / "a", cache=tmp_path, **OPTIONS)
    with pytest.raises(UserError, match="other options, data or weights"):
        evaluate(cascade(), shards, tmp_path / "a", cache=tmp_path, **{**OPTIONS, "steps": 3})
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / ".job.json.1-000000000000.tmp").write_text("{")  # another rank is writing its copy
    evaluate(cascade(), shards, tmp_path / "c", cache=tmp_path, **OPTIONS)
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="not empty"):
        evaluate(cascade(), shards, tmp_path / "b", cache=tmp_path, **OPTIONS)


def test_mistakes_are_found_before_sampling(shards, coarse, tmp_path):
    without_text = Cascade([stage(16, text=False)])
    for options, what, message in (
        ({"metrics": ("fjd",)}, cascade(), "unknown metric 'fjd'"),
        ({"metrics": ()}, cascade(), "name at least one"),
        ({"split": "test"}, cascade(), "no split 'test'"),
        ({"reference": 25}, cascade(), "fewer than the 25"),
        ({"n": 1}, cascade(), "n is 1"),
        ({"save_images": -1}, cascade(), "save_images is -1"),
        ({"metrics": ("kid",), "n": 3}, cascade(), "kid: 3 generated and 24 real images; at least 4"),
        ({"metrics": ("prdc",), "reference": 5}, cascade(), "coverage: 20 generated and 5 real images; at least 6"),
        ({"metrics": ("clip",)}, without_text, "reads no text"),
    ):
        with pytest.raises(UserError, match=message):
            evaluate(what, shards, tmp_path / "a", **{**OPTIONS, **options})
    assert coarse.seen == 0 and not (tmp_path / "a").exists()


def test_real_features_are_cached_by_what_they_depend_on(shards, coarse, tmp_path):
    dataset = open_split(shards, "train")
    order = choose(dataset, None)
    assert sorted(order) == list(range(30)) and list(choose(dataset, 7)) == list(order[:7])
    first = real_features(dataset, order[:7], 16, coarse, cache=tmp_path, progress=False)
    again = real_features(dataset, order[:7], 16, coarse, cache=tmp_path, progress=False)
    assert coarse.seen == 7 and np.array_equal(first, again)
    real_features(dataset, order[:8], 16, coarse, cache=tmp_path, progress=False)
    assert coarse.seen == 15


def test_other_images_in_shards_of_the_same_size_are_not_taken_from_the_cache(coarse, tmp_path):
    """Tars are padded to 10 KiB, and noise has the same size whatever it shows."""
    order = list(np.random.default_rng(0).permutation(40))

    def features(changed, image):
        rng = np.random.default_rng(1)
        with ShardWriter(tmp_path / "data") as writer:
            for number in range(40):
                noise = Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8))
                stream = io.BytesIO()
                (image if number in changed else noise).save(stream, "PNG")
                writer.write({"__key__": f"{number:02d}", "16.png": stream.getvalue(), "txt": b"noise"})
        dataset = open_split(tmp_path / "data", "train")
        found = real_features(dataset, choose(dataset, 40), 16, coarse, cache=tmp_path / "cache", progress=False)
        shutil.rmtree(tmp_path / "data")
        return dataset.fingerprint(), found

    noise = Image.fromarray(np.random.default_rng(2).integers(0, 256, (16, 16, 3), dtype=np.uint8))
    fingerprint, before = features([], noise)
    for changed, image in ((order[:1], noise), (order[-1:], Image.new("RGB", (16, 16), "red"))):
        same, after = features(changed, image)
        assert same == fingerprint and len(np.flatnonzero((before != after).any(1))) == 1


@pytest.fixture
def real_part(monkeypatch):
    monkeypatch.setattr(real, "PART", 8)


class Dies(Coarse):
    """Stop like a killed process, after `after` images."""

    def __init__(self, after: int):
        super().__init__()
        self.after = after

    def __call__(self, images_BCHW):
        if self.seen >= self.after:
            raise KeyboardInterrupt
        return super().__call__(images_BCHW)


def test_interrupted_real_features_resume(shards, real_part, tmp_path):
    dataset = open_split(shards, "train")
    indices = choose(dataset, 29)
    whole = real_features(dataset, indices, 16, Coarse(), cache=tmp_path / "a", progress=False)
    assert np.array_equal(whole, torch.cat([Coarse()(batch) for batch in images(dataset, indices, 16)]))
    assert len(list((tmp_path / "a").iterdir())) == 1, "the parts are deleted"
    with pytest.raises(KeyboardInterrupt):  # in the third part of four
        real_features(dataset, indices, 16, Dies(16), cache=tmp_path / "b", progress=False)
    assert len(list((tmp_path / "b").iterdir())) == 2
    rest = Coarse()
    resumed = real_features(dataset, indices, 16, rest, cache=tmp_path / "b", progress=False)
    assert rest.seen == 29 - 16 and np.array_equal(resumed, whole)
    (name,) = [file.name for file in (tmp_path / "a").iterdir()]
    assert [file.name for file in (tmp_path / "b").iterdir()] == [name], "the file of an uninterrupted computation"


def test_ranks_share_real_features(shards, real_part, tmp_path):
    dataset = open_split(shards, "train")
    indices = choose(dataset, 29)
    whole = real_features(dataset, indices, 16, Coarse(), cache=tmp_path / "a", progress=False)
    extractors = [Coarse() for _ in range(3)]
    given = {"cache": tmp_path / "b", "ranks": 3, "progress": False}
    assert len(real_features(dataset, indices, 16, extractors[1], rank=1, **given)) == 0
    first = real_features(dataset, indices, 16, extractors[0], rank=0, **given)  # rank 2 never started
    assert len(real_features(dataset, indices, 16, extractors[2], rank=2, **given)) == 0
    # Rank 1 computed part 1 of four, rank 0 its own parts 0 and 3 and the missing part 2.
    assert [extractor.seen for extractor in extractors] == [8 + 5 + 8, 8, 0]
    assert np.array_equal(first, whole) and len(list((tmp_path / "b").iterdir())) == 1


def test_processes_that_compute_the_same_real_features_do_not_disturb_each_other(shards, real_part, tmp_path):
    """While one process computes the last part, another one ends: it combines the parts and deletes them."""
    dataset = open_split(shards, "train")
    indices = choose(dataset, 29)

    class Overtaken(Coarse):
        def __call__(self, images_BCHW):
            if self.seen == 24:
                real_features(dataset, indices, 16, Coarse(), cache=tmp_path / "b", progress=False)
            return super().__call__(images_BCHW)

    whole = real_features(dataset, indices, 16, Coarse(), cache=tmp_path / "a", progress=False)
    overtaken = real_features(dataset, indices, 16, Overtaken(), cache=tmp_path / "b", progress=False)
    assert np.array_equal(overtaken, whole) and len(list((tmp_path / "b").iterdir())) == 1


def test_super_resolution_is_measured_on_true_inputs(shards, coarse, tmp_path):
    """PSNR of the report is that of the saved images beside the samples they were made from."""
    pytest.importorskip("torchmetrics")
    small = Cascade(
        [stage(8, seed=1), stage(16, 8)], text=TEXT, unconditional=torch.zeros(1, 16), encoder=WordTokenEncoder()
    )
    options = {**OPTIONS, "metrics": ("psnr", "ssim"), "n": 6, "stages": 2, "inputs": "true"}
    report = evaluate(small, shards, tmp_path / "a", save_images=6, **options)
    dataset = open_split(shards, "heldout")
    truth = torch.cat(list(images(dataset, choose(dataset, 6), 16))).double()
    files = sorted((tmp_path / "a" / "images").glob("*.png"))
    made = torch.stack([torch.from_numpy(np.array(Image.open(file))).permute(2, 0, 1) for file in files]).double()
    expected = (10 * torch.log10(255**2 / (made - truth).square().mean((1, 2, 3)))).mean().item()
    assert report["metrics"]["psnr"]["value"] == pytest.approx(expected, rel=1e-5)
    assert report["metrics"]["ssim"]["value"] < 0.5, "random weights draw something else"
    with pytest.raises(UserError, match="set inputs to true"):
        evaluate(small, shards, tmp_path / "b", **{**options, "inputs": "generated"})
    with pytest.raises(UserError, match="fewer than the 25"):
        evaluate(small, shards, tmp_path / "b", **{**options, "n": 25})
    with pytest.raises(UserError, match="true inputs are for super-resolution"):
        evaluate(small, shards, tmp_path / "b", **{**options, "stages": 1})


@pytest.mark.parametrize("option", [["--sweep", "steps=1,2"], ["--gap"]])
def test_missing_matplotlib_is_reported_before_anything_is_sampled(shards, coarse, tmp_path, monkeypatch, option):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    cascade().save(tmp_path / "c")
    found = run_imagen("evaluate", tmp_path / "c", "--data", shards, "--out", tmp_path / "o", *option)
    assert found.code == 2 and "plotting needs the package matplotlib" in found.err and "[demo]" in found.err
    assert coarse.seen == 0 and not (tmp_path / "o").exists()


def test_true_inputs_are_read_a_batch_at_a_time(shards, coarse, tmp_path, monkeypatch):
    """They need not fit into memory. The numbers are those of the same images in a list."""
    small = Cascade(
        [stage(8, seed=1), stage(16, 8)], text=TEXT, unconditional=torch.zeros(1, 16), encoder=WordTokenEncoder()
    )
    options = {**OPTIONS, "cache": tmp_path / "cache", "metrics": ("fid",), "stages": 2, "inputs": "true"}
    read, most = [], []
    to_images = run.to_images

    def counted(batch):
        found = to_images(batch)
        read.extend(weakref.ref(image) for image in found)
        most.append(sum(image() is not None for image in read))
        return found

    monkeypatch.setattr(run, "to_images", counted)
    lazy = evaluate(small, shards, tmp_path / "a", **options)
    assert max(most) <= OPTIONS["batch_size"] + 1
    dataset = open_split(shards, "heldout")
    inputs = [image for batch in images(dataset, choose(dataset, 20), 8) for image in to_images(batch)]
    monkeypatch.setattr(run, "LazyImages", lambda length, size, read: inputs)
    assert evaluate(small, shards, tmp_path / "b", **options)["metrics"] == lazy["metrics"]
    assert (tmp_path / "a" / "job.json").read_text() == (tmp_path / "b" / "job.json").read_text()


def test_a_sweep_and_a_gap_are_rows_of_evaluations(shards, coarse, tmp_path):
    options = {**OPTIONS, "cache": tmp_path / "cache", "metrics": ("fid",), "n": 8}
    rows = sweep(cascade(), shards, tmp_path / "s", "guidance", [1.0, 3.0], **options)
    alone = evaluate(cascade(), shards, tmp_path / "alone", guidance=3.0, **options)
    assert [row["guidance"] for row in rows] == [1.0, 3.0]
    assert rows[1]["metrics"] == alone["metrics"] != rows[0]["metrics"]
    with pytest.raises(UserError, match="'guidence' cannot vary; did you mean 'guidance'"):
        sweep(cascade(), shards, tmp_path / "s", "guidence", [1.0], **options)
    small = Cascade(
        [stage(8, seed=1), stage(16, 8)], text=TEXT, unconditional=torch.zeros(1, 16), encoder=WordTokenEncoder()
    )
    del options["stages"]
    gap = cascade_gap(small, shards, tmp_path / "g", **options)
    assert [(row["resolution"], row["inputs"]) for row in gap] == [(8, "generated"), (16, "generated"), (16, "true")]
    assert json.loads((tmp_path / "g" / "report.json").read_text())["rows"] == gap
    per_stage = cascade_gap(small, shards, tmp_path / "p", **options | {"steps": [1, 2]})
    assert [[each["sampling"]["steps"] for each in row["request"]["stages"]] for row in per_stage] == [[1], [1, 2], [2]]


def test_a_gap_without_anything_to_measure_is_a_mistake(shards, coarse, tmp_path):
    """psnr and ssim need a super-resolution stage."""
    options = {**OPTIONS, "metrics": ("psnr", "ssim"), "n": 8}
    with pytest.raises(UserError, match="psnr and ssim compare with the true inputs of super-resolution stages"):
        cascade_gap(cascade(), shards, tmp_path / "g", **options)


def test_the_page_shows_numbers_plots_and_images(shards, coarse, tmp_path):
    pytest.importorskip("matplotlib")
    options = {**OPTIONS, "cache": tmp_path / "cache", "metrics": ("fid",), "n": 8, "save_images": 4}
    rows = sweep(cascade(), shards, tmp_path / "s", "steps", [1, 2], **options)
    page = write_report(tmp_path / "s", rows, "imagen evaluate <mine>", swept="steps").read_text()
    assert "imagen evaluate &lt;mine&gt;" in page and page.count("data:image/png;base64,") == 3
    for row in rows:
        assert f"{row['metrics']['fid']['value']:.4g}" in page
    assert Image.open(tmp_path / "s" / "over-steps.png").width > 200
