"""Train adapters: against peft's layers and merged weights, on ranks, compiled, interrupted, exported."""

import dataclasses
import json
import shutil

import pytest
import torch
from finetuning import cascade_of, random_weights, started, without_config_of
from ranks import run_on_ranks
from run_state import assert_same, metrics
from toy import UNET, train_on_rank, train_quietly

from imagen.cascade import Cascade
from imagen.cascade.merging import merge_lora
from imagen.cascade.storage import read_manifest, read_tensors
from imagen.errors import UserError
from imagen.lora import LoraConfig, applied, fit, read_adapter
from imagen.lora.modules import add_adapters, factors, is_factor, merged
from imagen.models.unet import UNet, cast_copy
from imagen.train.config import OptimConfig, ParallelConfig
from imagen.train.experiment import check
from imagen.train.export import export_run
from imagen.train.run import train_run
from imagen.train.trainer import Trainer

BOTH = LoraConfig(rank=3, alpha=6.0, convolutions=True)


@pytest.fixture(scope="module")
def cascade(tmp_path_factory):
    return cascade_of(tmp_path_factory.mktemp("lora") / "cascade")


def test_adapters_need_all_initial_weights(cascade):
    what = adapted(cascade)
    with pytest.raises(UserError, match="leave out --init-partial"):
        check(dataclasses.replace(what, init=dataclasses.replace(what.init, partial=True)))


def adapted(cascade, lora=BOTH, parallel=None, **train):
    what = started(cascade, **{"checkpoint_every": 2, "log_every": 1, **train})
    # A large eps: where a gradient is nearly 0, rounding decides the sign of Adam's update.
    optim = OptimConfig(lr=1e-2, warmup_steps=1, eps=1e-4, schedule="constant")
    return dataclasses.replace(what, lora=lora, optim=optim, parallel=parallel or ParallelConfig())


def awake(unet, seed=5):
    """Give B random values, so that the adapters change something."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, parameter in unet.named_parameters():
            if name.endswith("lora_B"):
                parameter.normal_(std=0.1)
    return unet


def unet_with_adapters(lora=BOTH):
    unet = UNet(UNET)
    unet.load_state_dict(random_weights())
    add_adapters(unet, lora)
    return unet


def answer(unet):
    generator = torch.Generator().manual_seed(1)
    x, text = torch.randn(2, 3, 16, 16, generator=generator), torch.randn(2, 4, 8, generator=generator)
    return unet(x, torch.tensor([10.0, 700.0]), text=text)


class TestModules:
    @torch.no_grad()
    def test_a_new_adapter_changes_nothing_and_names_stay(self):
        plain = UNet(UNET)
        plain.load_state_dict(random_weights())
        unet = unet_with_adapters()
        assert torch.equal(answer(unet), answer(plain))
        assert [name for name in unet.state_dict() if not is_factor(name)] == list(plain.state_dict())
        assert all(is_factor(name) == parameter.requires_grad for name, parameter in unet.named_parameters())

    @torch.no_grad()
    def test_merged_weights_give_the_same(self):
        unet = awake(unet_with_adapters())
        plain = UNet(UNET)
        plain.load_state_dict(merged(unet.state_dict(), BOTH.scale))
        torch.testing.assert_close(answer(unet), answer(plain), rtol=1e-4, atol=1e-5)
        before = UNet(UNET)
        before.load_state_dict(random_weights())
        assert (answer(unet) - answer(before)).abs().max() > 0.01

    def test_layers_by_default_and_on_request(self):
        attention = add_adapters(UNet(UNET), LoraConfig(rank=2))
        assert attention and all(".attention." in name for name in attention)
        assert {name.rpartition(".")[2] for name in attention} == {
            *("to_q", "to_k", "to_v", "to_out", "context_k", "context_v")
        }
        more = add_adapters(UNet(UNET), LoraConfig(rank=2, convolutions=True))
        assert {*more} - {*attention} and all(
            name.endswith(("conv1", "conv2", "shortcut")) for name in {*more} - {*attention}
        )
        assert add_adapters(UNet(UNET), LoraConfig(rank=2, targets=("conv_in",))) == ["conv_in"]
        with pytest.raises(UserError, match=r"lora\.targets: no linear layer .* matches 'to_q'"):
            add_adapters(UNet(UNET), LoraConfig(rank=2, targets=("to_q",)))

    @torch.no_grad()
    def test_a_low_precision_copy_has_the_adapters_and_what_is_frozen(self):
        unet = awake(unet_with_adapters())
        copy = cast_copy(unet, torch.bfloat16)
        assert {p.dtype for p in copy.parameters()} == {torch.bfloat16}
        assert [p.requires_grad for p in copy.parameters()] == [p.requires_grad for p in unet.parameters()]
        assert (answer(copy).float() - answer(unet)).abs().max() < 0.1

    def test_peft_computes_the_same(self):
        """The same factors in peft's layers: outputs and gradients."""
        peft = pytest.importorskip("peft")
        unet, theirs = awake(unet_with_adapters()), UNet(UNET)
        theirs.load_state_dict(random_weights())
        names = [name for name, _, _ in factors(unet.state_dict())]
        theirs = peft.get_peft_model(theirs, peft.LoraConfig(r=3, lora_alpha=6, target_modules=names))
        layers = {name: module for name, module in theirs.named_modules() if hasattr(module, "lora_A")}
        for name, A, B in factors(unet.state_dict()):
            layer = layers[f"base_model.model.{name}"]
            layer.lora_A["default"].weight.data.copy_(A)
            layer.lora_B["default"].weight.data.copy_(B)
        mine, other = answer(unet), answer(theirs)
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-5)
        mine.square().sum().backward()
        other.square().sum().backward()
        for name in names:
            layer = layers[f"base_model.model.{name}"]
            torch.testing.assert_close(
                unet.get_submodule(name).lora_B.grad, layer.lora_B["default"].weight.grad, rtol=1e-3, atol=1e-4
            )


@pytest.fixture(scope="module")
def alone(shards, cascade, tmp_path_factory):
    run = tmp_path_factory.mktemp("alone") / "run"
    train_run(adapted(cascade), shards, run, report=lambda line: None)
    return run


class TestTraining:
    def test_only_factors_are_trained_averaged_and_stored(self, shards, cascade, tmp_path, alone):
        stored = without_config_of(alone)
        assert stored["model"] and all(map(is_factor, [*stored["model"], *stored["ema"]]))
        assert all(is_factor(name.rpartition(".")[0]) for name in stored["optimizer"])
        said = []
        unet = Trainer(adapted(cascade), shards, tmp_path, report=said.append).run.unet
        assert any("M trained)" in line for line in said)
        expected = random_weights()
        assert all(torch.equal(value, expected[name]) for name, value in unet.state_dict().items() if name in expected)

    def test_a_resumed_run_equals_an_uninterrupted_one(self, shards, tmp_path, alone):
        """And needs nothing but its own folder: the cascade may be gone."""
        source = cascade_of(tmp_path / "c")
        for steps in (1, 3):
            train_quietly(adapted(source, steps=steps), shards, tmp_path / "run")
        shutil.rmtree(source)
        what = adapted(source, run=tmp_path / "run")
        train_quietly(what, shards, tmp_path / "run")
        assert_same(without_config_of(tmp_path / "run"), without_config_of(alone))

    @pytest.mark.parametrize("layout", [ParallelConfig(), ParallelConfig(shard=2)], ids=["ddp", "fsdp"])
    def test_on_two_ranks(self, shards, cascade, tmp_path, alone, layout):
        run_on_ranks(2, train_on_rank, adapted(cascade, parallel=layout), shards, tmp_path)
        for row, wanted in zip(metrics(tmp_path), metrics(alone), strict=True):
            assert row["loss"] == pytest.approx(wanted["loss"], rel=1e-4)
            assert row["grad_norm"] == pytest.approx(wanted["grad_norm"], rel=1e-3)
        mine, expected = without_config_of(tmp_path), without_config_of(alone)
        assert mine["model"].keys() == expected["model"].keys()
        for name, value in expected["ema"].items():
            torch.testing.assert_close(mine["ema"][name], value, rtol=0, atol=2e-3)

    def test_compiled(self, cascade):
        unet = awake(unet_with_adapters())
        expected = answer(unet)
        compiled = torch.compile(unet, backend="aot_eager", fullgraph=True)
        found = answer(compiled)
        torch.testing.assert_close(found, expected)
        found.sum().backward()
        assert all((p.grad is not None) == p.requires_grad for p in unet.parameters())
        torch._dynamo.reset()

    def test_recomputed_activations_give_the_same(self, shards, cascade, tmp_path, alone):
        train_quietly(adapted(cascade, parallel=ParallelConfig(checkpointing="full")), shards, tmp_path)
        assert_same(without_config_of(tmp_path), without_config_of(alone))


class TestExport:
    def test_the_file_of_a_run_gives_the_images_of_its_merged_weights(self, cascade, alone, tmp_path):
        adapter = read_adapter(alone / "lora.safetensors")
        base, whole = Cascade.load(cascade).stages[0].unet, Cascade.load(alone).stages[0].unet
        fitted = fit(adapter, base)
        assert {each.scale for each in adapter.modules.values()} == {2.0}
        with torch.no_grad(), applied(base, [(fitted, 1.0)]):
            torch.testing.assert_close(answer(base), answer(whole), rtol=1e-4, atol=1e-5)

    def test_an_earlier_step_as_a_file_and_merged(self, alone, tmp_path):
        words = export_run(alone, tmp_path / "two.safetensors", step=2, merge=False)
        assert "LoRA of the EMA at step 2" in words
        early, late = (read_adapter(path) for path in (tmp_path / "two.safetensors", alone / "lora.safetensors"))
        assert early.modules.keys() == late.modules.keys() and early.sha256 != late.sha256
        assert "adapters merged at step 4" in export_run(alone, tmp_path / "whole")
        shas = [read_manifest(folder).stages[0].sha256 for folder in (alone / "export", tmp_path / "whole")]
        assert shas[0] == shas[1]
        with pytest.raises(UserError, match="must end in"):
            export_run(alone, tmp_path / "folder", merge=False)

    def test_merging_files_into_a_cascade(self, cascade, alone, tmp_path):
        path = alone / "lora.safetensors"
        merge_lora(cascade, [(path, 0.5, None), (path, 0.5, 16)], tmp_path / "merged")
        (record,) = read_manifest(tmp_path / "merged").stages
        found = read_tensors(tmp_path / "merged", record.weights, record.sha256)
        (wanted,) = read_manifest(alone / "export").stages
        expected = read_tensors(alone / "export", wanted.weights, wanted.sha256)
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-6)
        assert [each["weight"] for each in record.info["merged"]] == [0.5, 0.5]
        with pytest.raises(UserError, match="is the cascade itself"):
            merge_lora(cascade, [(path, 1.0, None)], cascade)

    def test_the_metadata_are_those_of_peft(self, alone):
        from safetensors import safe_open

        with safe_open(alone / "lora.safetensors", "pt") as file:
            settings = json.loads(file.metadata()["lora_adapter_metadata"])
            keys = list(file.keys())
        assert (settings["unet.r"], settings["unet.lora_alpha"]) == (3, 6.0)
        assert all(key.startswith("unet.") and key.endswith((".lora_A.weight", ".lora_B.weight")) for key in keys)
