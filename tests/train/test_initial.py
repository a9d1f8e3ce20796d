"""Start training from the weights of a cascade: what is taken over, what is refused, and how runs resume."""

import dataclasses
import json
import shutil

import pytest
import torch
from finetuning import cascade_of, random_weights, started, without_config_of
from run_state import assert_same, last_checkpoint
from toy import UNET, experiment, train_quietly

from imagen.cascade.storage import read_manifest, read_tensors
from imagen.errors import UserError
from imagen.lora.config import LoraConfig
from imagen.models.unet import UNet
from imagen.train.experiment import Experiment, override
from imagen.train.export import export_run
from imagen.train.finetune import check_changes, freeze, start_from
from imagen.train.run import train_run
from imagen.train.trainer import Trainer


@pytest.fixture(scope="module")
def cascade(tmp_path_factory):
    return cascade_of(tmp_path_factory.mktemp("init") / "cascade")


class TestWhatIsTakenOver:
    def test_stage_and_text_of_the_cascade_and_training_of_the_preset(self, tmp_path):
        other = dataclasses.replace(experiment().stage, unet=dataclasses.replace(UNET, time_width=64), resolution=32)
        source = cascade_of(tmp_path / "c", dataclasses.replace(experiment(), stage=other))
        what = started(f"{source}#32", "--stage.sampling.steps", "3", batch_size=4)
        assert what.stage == dataclasses.replace(other, sampling=dataclasses.replace(other.sampling, steps=3))
        assert (what.train.batch_size, what.optim) == (4, experiment().optim)
        assert what.init is not None and what.init.sha256 == read_manifest(source).stages[0].sha256
        assert (what.init.source, what.init.resolution) == (f"{source}#32", 32)

    def test_the_config_of_the_run_names_source_and_hash(self, shards, cascade, tmp_path):
        train_quietly(started(cascade, steps=1), shards, tmp_path)
        config = json.loads((tmp_path / "config.json").read_text())
        sha256 = read_manifest(cascade).stages[0].sha256
        assert config["init"] == {"source": str(cascade), "resolution": 16, "sha256": sha256} | {
            "partial": False,
            "converted_from": None,
        }

    def test_the_packaged_stages(self):
        from imagen.presets import preset

        base, large = (start_from(preset("finetune"), f"emoji#{size}") for size in (64, 1024))
        assert base.stage.unet == preset("emoji_64").stage.unet and base.text == preset("emoji_64").text
        assert large.text is None and large.stage.low_resolution == 256

    @pytest.mark.parametrize(
        ("source", "message"),
        [
            ("emoji", "emoji has several stages; name one of 64, 256, 1024, as in --init emoji#64"),
            ("emoji#128", "emoji has no stage 128"),
            ("nowhere", "nowhere does not exist"),
        ],
    )
    def test_sources_that_are_not_there(self, source, message):
        with pytest.raises(UserError, match=message):
            start_from(experiment(), source)


class TestWeights:
    def test_weights_and_ema_begin_with_those_of_the_cascade(self, shards, cascade, tmp_path):
        run = Trainer(started(cascade), shards, tmp_path, report=lambda line: None).run
        expected = random_weights()
        for found in (run.unet.state_dict(), run.checkpointer.ema.weights):
            assert found.keys() == expected.keys()
            assert all(torch.equal(found[name], expected[name]) for name in expected)

    def test_a_resumed_run_takes_its_weights_from_its_checkpoint(self, shards, tmp_path):
        source = cascade_of(tmp_path / "c")
        train_quietly(started(source), shards, tmp_path / "whole")
        train_quietly(started(source, steps=2), shards, tmp_path / "parts")
        cascade_of(source, seed=9)  # replaced meanwhile
        train_quietly(started(source, run=tmp_path / "parts"), shards, tmp_path / "parts")
        assert_same(without_config_of(tmp_path / "parts"), without_config_of(tmp_path / "whole"))
        shutil.rmtree(source)
        assert train_quietly(started(source, run=tmp_path / "parts", steps=5), shards, tmp_path / "parts").step == 5

    def test_another_source_for_a_run_with_checkpoints_is_refused(self, shards, cascade, tmp_path):
        train_quietly(experiment(steps=1), shards, tmp_path / "run")
        with pytest.raises(UserError, match="was started with init = null"):
            train_quietly(started(cascade), shards, tmp_path / "run")
        train_quietly(started(cascade, steps=1), shards, tmp_path / "other")
        with pytest.raises(UserError, match=r"was started with init.sha256"):
            train_quietly(started(cascade_of(tmp_path / "c", seed=8)), shards, tmp_path / "other")
        moved = shutil.copytree(cascade, tmp_path / "moved")
        assert train_quietly(started(moved), shards, tmp_path / "other").finished

    def test_an_earlier_start_without_a_checkpoint_leaves_nothing(self, shards, cascade, tmp_path):
        Trainer(started(cascade), shards, tmp_path, report=lambda line: None)
        assert (tmp_path / "base" / "unconditional.safetensors").is_file()
        (tmp_path / "base" / "vocabulary.json").write_text("{}")
        Trainer(experiment(), shards, tmp_path, report=lambda line: None)
        assert not list((tmp_path / "base").iterdir())

    def test_a_run_can_be_the_source(self, shards, cascade, tmp_path):
        train_run(started(cascade, steps=1), shards, tmp_path / "a", report=lambda line: None)
        what = started(tmp_path / "a", steps=1)
        run = Trainer(what, shards, tmp_path / "b", report=lambda line: None).run
        folder = tmp_path / "a" / "export"
        (record,) = read_manifest(folder).stages
        expected = read_tensors(folder, record.weights, record.sha256)
        assert all(torch.equal(value, expected[name]) for name, value in run.unet.state_dict().items())
        assert record.info["init"]["source"] == str(cascade)


class TestMisfits:
    @pytest.mark.parametrize(
        ("field", "value", "message"),
        [
            ("--stage.unet.time_width", "64", r"stage.unet.time_width is 64, but the weights of .* are for 32: leave"),
            ("--stage.unet.levels.1.channels", "64", r"stage.unet.levels\[1\].channels is 64, .* --init-partial"),
            ("--text.width", "16", r"text.width is 16, but the weights of .* are for 8"),
            ("--text.padding", "full", r"text.padding is 'full', but"),
            ("--stage.objective.prediction", "v", r"stage.objective.prediction is 'v', but .* 'eps': leave it out$"),
            ("--stage.schedule.kind", "linear", r"stage.schedule.kind is 'linear', but"),
        ],
    )
    def test_overrides_that_cannot_be(self, cascade, field, value, message):
        with pytest.raises(UserError, match=message):
            started(cascade, field, value)

    def test_prediction_cannot_change_even_partly(self, cascade):
        with pytest.raises(UserError, match=r"stage\.objective\.prediction"):
            started(cascade, "--stage.objective.prediction", "v", partial=True)

    def test_overrides_that_can_be_are_reported(self, cascade):
        begun = start_from(experiment(), str(cascade))
        fields = ["--stage.schedule.shift_reference", "8", "--text.encoder", "moved", "--stage.sampling.steps", "2"]
        notes = check_changes(begun, override(begun, fields))
        assert [note.partition(": ")[2] for note in notes] == [
            "stage.schedule.shift_reference = 8; its weights are for None",
            "text.encoder = 'moved'; its weights are for 'toy'",
        ]

    def test_partial_weights_are_listed(self, shards, cascade, tmp_path):
        fields = ["--stage.unet.levels.1.channels", "48", "--stage.unet.learned_variance", "true"]
        what, said = started(cascade, *fields, partial=True), []
        run = Trainer(what, shards, tmp_path, report=said.append).run
        (line,) = [line for line in said if "new, with random values" in line]
        assert "conv_out.weight" in line and "up.0.blocks.0.residual.conv1.weight" in line
        assert "conv_in.weight" not in line and "down.0.blocks.0.residual.conv1.weight" not in line
        expected, found = random_weights(), run.unet.state_dict()
        for name, value in found.items():
            same = value.shape == expected[name].shape
            assert same != (name in line.replace(",", "").split())
            assert not same or torch.equal(value, expected[name])

    def test_another_text_width(self, shards, cascade):
        fields = ["--text.width", "16", "--stage.unet.text_width", "16", "--text.encoder", "other"]
        what = started(cascade, *fields, partial=True)
        assert (what.text.width, what.stage.unet.text_width) == (16, 16)

    def test_weights_of_which_none_fits(self, shards, cascade, tmp_path):
        from imagen.train.initial import InitConfig, load_initial

        weights = {"other": torch.zeros(1)}
        with pytest.raises(UserError, match="none of its weights fit"):
            load_initial(UNet(UNET), weights, InitConfig(source="c", partial=True), print)
        with pytest.raises(UserError, match=r"--init c: .*: no such tensor, the U-Net needs"):
            load_initial(UNet(UNET), weights, InitConfig(source="c"), print)


class TestFreezing:
    def test_only_what_is_not_frozen_changes(self, shards, cascade, tmp_path):
        what = started(cascade, "--train.freeze", '["down.*", "*.bias"]', steps=2, ema_sigma_rels=(0.1,))
        train_quietly(what, shards, tmp_path)
        before, after = random_weights(), last_checkpoint(tmp_path)
        for name, value in after["model"].items():
            frozen = name.startswith("down.") or name.endswith(".bias")
            assert torch.equal(value, before[name]) == frozen, name
            assert (name in after["ema"]) != frozen
        assert not [name for name in after["optimizer"] if name.startswith("down.")]

    def test_a_run_resumes_and_is_exported(self, shards, cascade, tmp_path):
        fields = "--train.trainable", '["*.attention.*"]'
        train_run(started(cascade, *fields, steps=3), shards, tmp_path / "whole", report=lambda line: None)
        for steps in (1, 3):
            train_run(started(cascade, *fields, steps=steps), shards, tmp_path / "parts", report=lambda line: None)
        assert_same(without_config_of(tmp_path / "parts"), without_config_of(tmp_path / "whole"))
        export_run(tmp_path / "parts", tmp_path / "out")
        exports = [read_manifest(folder).stages[0].sha256 for folder in (tmp_path / "whole/export", tmp_path / "out")]
        assert exports[0] == exports[1]

    @pytest.mark.parametrize(
        ("frozen", "trainable", "message"),
        [
            (["down.7.*"], [], "train.freeze: no parameter matches 'down.7.*'"),
            ([], ["nothing"], "train.trainable: no parameter matches 'nothing'"),
            (["*"], [], "leave no parameter"),
        ],
    )
    def test_patterns_that_match_nothing(self, frozen, trainable, message):
        with pytest.raises(UserError, match=message):
            freeze(UNet(UNET), frozen, trainable)


def test_adapters_without_weights_are_refused(shards, tmp_path):
    what: Experiment = dataclasses.replace(experiment(), lora=LoraConfig(rank=2))
    with pytest.raises(UserError, match=r"lora.rank is 2, but there are no weights to adapt"):
        train_quietly(what, shards, tmp_path)
