"""Test user-defined callbacks, and count the files that a run opens."""

import dataclasses
import json
from collections import Counter
from pathlib import Path

import pytest
from encoders import ToyEncoder
from ranks import run_on_ranks
from toy import experiment, train_quietly

import imagen
from imagen import files
from imagen.data.embed import sidecar
from imagen.data.loading import transforms
from imagen.data.loading.config import DataConfig
from imagen.data.shards import dataset
from imagen.errors import UserError
from imagen.text import encoder as text_module
from imagen.train.callbacks import Callback
from imagen.train.ranks import Ranks, process_group
from imagen.train.run import train_run


class Recorder(Callback):
    """Records every call of a hook, and stops the run after a given step."""

    every = 3

    def __init__(self, stop_after=None):
        self.calls, self.stop_after, self.losses = [], stop_after, []

    def on_start(self, run):
        self.calls.append(("start", run.step))

    def on_step(self, run, step, result):
        self.losses.append(sum(result.losses) / len(result.losses))
        if step == self.stop_after:
            run.stopper.request("the recorder has seen enough")

    def on_interval(self, run, step):
        run.measurements["mean_weight"] = sum(p.mean().item() for p in run.unet.parameters())
        self.calls.append(("interval", step))

    def on_row(self, run, step, row):
        self.calls.append(("row", step))
        self.row = row

    def before_checkpoint(self, run, step):
        self.calls.append(("before checkpoint", step))

    def on_checkpoint(self, run, step):
        self.calls.append(("checkpoint", step))

    def on_end(self, run, result):
        self.calls.append(("end", result and result.step))


def test_hooks_are_called_in_order(shards, tmp_path):
    recorder = Recorder()
    what = experiment(steps=5, log_every=2, gap_every=4, checkpoint_every=4)
    assert train_quietly(what, shards, tmp_path, callbacks=[recorder]).finished
    assert recorder.calls == [
        ("start", 0),
        *(("row", 2), ("interval", 3)),
        *(("row", 4), ("before checkpoint", 4), ("checkpoint", 4)),
        *(("row", 5), ("interval", 5), ("before checkpoint", 5), ("checkpoint", 5)),
        ("end", 5),
    ]
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert recorder.row == {name: value for name, value in rows[-1].items() if name != "step"}
    # Measurements are part of the next row: those of step 3 are in the row of step 4.
    assert [row["step"] for row in rows if "mean_weight" in row] == [4]
    assert "conditional_gap" in rows[1] and rows[0]["loss"] == pytest.approx(sum(recorder.losses[:2]) / 2)


def test_a_callback_after_the_checkpoint_cannot_lose_it(shards, tmp_path):
    class Failing(Callback):
        every, after_checkpoint = 2, True

        def on_interval(self, run, step):
            raise UserError("no room for the grid")

    with pytest.raises(UserError, match="no room"):
        train_quietly(experiment(steps=5, checkpoint_every=2), shards, tmp_path, callbacks=[Failing()])
    assert train_quietly(experiment(steps=3, checkpoint_every=2), shards, tmp_path).step == 3
    assert [path.name for path in sorted((tmp_path / "checkpoints").glob("step-*"))] == [
        "step-00000002",
        "step-00000003",
    ]


def test_a_run_stopped_by_a_callback_resumes(shards, tmp_path):
    ended = train_quietly(experiment(steps=5), shards, tmp_path, callbacks=[Recorder(stop_after=2)])
    assert (ended.step, ended.finished, ended.signalled) == (3, False, False)
    assert ended.reason == "the recorder has seen enough"
    recorder = Recorder()
    assert train_quietly(experiment(steps=5), shards, tmp_path, callbacks=[recorder]).finished
    assert recorder.calls[0] == ("start", 3) and len(recorder.losses) == 2


def test_on_end_is_called_after_an_exception(shards, tmp_path):
    class Failing(Callback):
        def on_step(self, run, step, result):
            raise UserError("no more")

    recorder = Recorder()
    with pytest.raises(UserError, match="no more"):
        train_quietly(experiment(steps=5), shards, tmp_path, callbacks=[recorder, Failing()])
    assert recorder.calls == [("start", 0), ("end", None)]


@pytest.mark.parametrize("folder, why", [("missing", "does not exist"), ("empty", "contains no shards")])
def test_a_run_without_data_creates_no_folder(tmp_path, folder, why):
    (tmp_path / "empty" / "train").mkdir(parents=True)
    with pytest.raises(UserError, match=rf"{folder}.* {why}.*`imagen data build`"):
        train_quietly(experiment(), tmp_path / folder, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_package_exports_the_base_class():
    assert imagen.Callback is Callback and "Callback" in dir(imagen)


def on_ranks(shards, run):
    recorder = Recorder(stop_after=2)
    with process_group() as ranks:
        ended = train_quietly(
            experiment(steps=9), shards, run, ranks=ranks, callbacks=[recorder] if ranks.rank == 1 else []
        )
    return ended.step, ended.reason, recorder.losses


def test_a_callback_on_one_rank_stops_all_ranks(shards, tmp_path):
    class_every, Recorder.every = (
        Recorder.every,
        None,
    )  # intervals must be due on all ranks, and this callback is on one
    try:
        (step, reason, none), (other_step, other_reason, losses) = run_on_ranks(2, on_ranks, shards, tmp_path)
    finally:
        Recorder.every = class_every
    assert step == other_step == 3 and reason == other_reason == "the recorder has seen enough"
    assert not none and len(losses) == 3


# --- files that a run opens ---


@pytest.fixture
def opened(monkeypatch):
    """Count opened data sets and sidecars, decoded images and loaded encoders."""
    counts = Counter()

    def count(what, original):
        def counting(self, *arguments):
            counts[what, Path(str(arguments[0].folder if what == "embeddings" else arguments[0])).name] += 1
            return original(self, *arguments)

        return counting

    monkeypatch.setattr(dataset.ShardedDataset, "__init__", count("dataset", dataset.ShardedDataset.__init__))
    monkeypatch.setattr(sidecar.Embeddings, "__init__", count("embeddings", sidecar.Embeddings.__init__))

    def load(config, device):
        counts["encoder"] += 1
        return ToyEncoder()

    decode = transforms.pictures.decode

    def counting_decode(*arguments):
        counts["decoded"] += 1
        return decode(*arguments)

    monkeypatch.setattr(text_module, "load_text_encoder", load)
    monkeypatch.setattr(transforms.pictures, "decode", counting_decode)
    return counts


def quick(on_the_fly=False, **train):
    """Return the toy experiment with one sampler step for the sample grid."""
    what = experiment(
        data=DataConfig(workers=0, on_the_fly=on_the_fly), **{"steps": 2, "sample_every": 1, "gap_every": 1} | train
    )
    sampling = dataclasses.replace(what.stage.sampling, steps=1, threshold="static")
    return dataclasses.replace(what, stage=dataclasses.replace(what.stage, sampling=sampling))


def run_quickly(what, shards, run):
    return train_run(what, shards, run, ranks=Ranks(), report=lambda line: None)


@pytest.mark.parametrize("on_the_fly", [False, True])
def test_a_run_opens_each_split_once(shards, tmp_path, opened, on_the_fly):
    assert run_quickly(quick(on_the_fly), shards, tmp_path).finished
    for split in ("train", "heldout"):
        assert opened["dataset", split] == 1
        assert opened["embeddings", split] == (0 if on_the_fly else 1)
    assert opened["encoder"] == (1 if on_the_fly else 0) and opened["decoded"] > 0
    assert (tmp_path / "samples" / "step-00000002.png").exists() and (tmp_path / "export" / "cascade.json").exists()


def test_no_data_are_read_before_the_run_is_locked_and_checked(shards, tmp_path, opened, monkeypatch):
    what, run = quick(on_the_fly=True), tmp_path / "run"
    with monkeypatch.context() as elsewhere, pytest.raises(UserError, match="another process is training"):
        elsewhere.setattr(files, "lock", lambda file: False)  # a process is not blocked by its own locks
        run_quickly(what, shards, run)
    assert not opened
    assert run_quickly(what, shards, run).finished
    opened.clear()
    with pytest.raises(UserError, match=r"batch_size = 8, not 4"):
        run_quickly(quick(on_the_fly=True, batch_size=4), shards, run)
    with pytest.raises(UserError, match=r"set train\.micro_batch to 4"):
        run_quickly(quick(on_the_fly=True, micro_batch=5), shards, tmp_path / "other")
    assert not opened
