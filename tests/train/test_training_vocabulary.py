"""A run exports what the captions of its data name, if the data set says so."""

import json
import shutil
from dataclasses import replace

import pytest
from toy import experiment, train_quietly

from imagen.train.data import TrainingData
from imagen.train.export import StageExport
from imagen.train.initial import InitConfig
from imagen.train.ranks import Ranks

SAID = {"names": ["red", "green"], "words": ["blue", "green", "red", "white"]}


@pytest.fixture
def described(shards, tmp_path):
    folder = tmp_path / "described"
    shutil.copytree(shards, folder)
    (folder / "dataset.json").write_text(json.dumps({"source": "made", **SAID}))
    return folder


def test_the_export_has_the_vocabulary(described, tmp_path):
    train_quietly(experiment(steps=1), described, tmp_path / "run", callbacks=[StageExport()])
    (stage,) = json.loads((tmp_path / "run" / "export" / "cascade.json").read_text())["stages"]
    assert stage["info"]["vocabulary"] == SAID


def test_initial_weights_know_what_they_were_trained_on(described, shards, tmp_path):
    train_quietly(experiment(steps=1), described, tmp_path / "first", callbacks=[StageExport()])
    (described / "dataset.json").write_text(json.dumps({"names": ["car"], "words": ["car"]}))
    second = replace(experiment(steps=1), init=InitConfig(source=str(tmp_path / "first")))
    for data, expected in ((described, {"names": ["car", "green", "red"], "words": sorted(["car", *SAID["words"]])}),
                           (shards, None)):  # fmt: skip
        out = tmp_path / f"second-{data.name}"
        train_quietly(second, data, out, callbacks=[StageExport()])
        (stage,) = json.loads((out / "export" / "cascade.json").read_text())["stages"]
        assert stage["info"].get("vocabulary") == expected


def test_a_mixture_has_one_if_every_part_has(described, shards, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(shards, other)
    (other / "dataset.json").write_text(json.dumps({"names": ["car"], "words": ["car"]}))
    both = TrainingData(experiment(), [described, other], Ranks()).vocabulary
    assert both.to_json() == {"names": ["car", "green", "red"], "words": ["blue", "car", *SAID["words"][1:]]}
    assert TrainingData(experiment(), [described, shards], Ranks()).vocabulary is None
