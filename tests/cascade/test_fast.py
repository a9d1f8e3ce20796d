"""Fast settings of a cascade: stored, copied, used, and recorded in the metadata."""

import dataclasses

import pytest
import torch
from cascades import QUICK, WordTokenEncoder, cascade, flip_a_byte, max_difference, save_cascade, stage
from lora import lora_file

from imagen.cascade import Cascade, assemble, regenerate_request, write_samples
from imagen.cascade.fast import add_fast
from imagen.cascade.float16 import convert_to_float16
from imagen.cascade.storage import export_stage, read_manifest
from imagen.errors import UserError
from imagen.files import write_json
from imagen.lora import applied, fit, read_adapter

SAMPLING = dataclasses.replace(stage(16).config.sampling, sampler="ddim", steps=2, guidance=1.0)


def loaded(path):
    found = Cascade.load(path)
    found.texts.encoder = WordTokenEncoder()
    return found


def distilled_run(path, source, number=0):
    """Write what a run of `imagen train distill` leaves: an export with its settings, and an adapter."""
    record, model = read_manifest(source).stages[number], Cascade.load(source)
    export_stage(
        path / "export",
        stage=dataclasses.replace(record.config, sampling=SAMPLING),
        text=model.text,
        weights=model.stages[number].unet.state_dict(),
        unconditional=model.unconditional,
        info={"init": {"source": str(source), "sha256": record.sha256}},
    )
    write_json(path / "config.json", {"distill": {"teacher_steps": 3}})
    lora_file(path / "lora.safetensors", model, number)
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A cascade of two stages with fast settings: an adapter for 16 pixels, 1 step for 32."""
    root = tmp_path_factory.mktemp("fast")
    source = save_cascade(stage(16), stage(32, 16), path=root / "plain")
    run = distilled_run(root / "run", source)
    assemble([source], root / "cascade")
    add_fast(root / "cascade", [run], {32: 1})
    return root / "cascade"


def test_fast_samples_with_the_settings_and_the_adapter(folder):
    model = loaded(folder)
    request = model.request("a cat", fast=True)
    assert [settings.steps for settings in request.settings] == [2, 1]
    assert (request.settings[0].sampler, request.settings[0].guidance) == ("ddim", 1.0)
    assert request.settings[1] == dataclasses.replace(model.stages[1].config.sampling, steps=1)
    (image,) = model.sample("a cat", fast=True, **QUICK)

    plain = loaded(folder.parent / "plain")
    fitted = fit(read_adapter(folder.parent / "run" / "lora.safetensors"), plain.stages[0].unet)
    with applied(plain.stages[0].unet, [(fitted, 1.0)]):
        settings = [SAMPLING, dataclasses.replace(plain.stages[1].config.sampling, steps=1)]
        (expected,) = plain.sample("a cat", settings=settings, **QUICK)
    assert max_difference(image, expected) <= 1
    assert max_difference(image, plain.sample("a cat", settings=settings, **QUICK)[0]) > 1  # the adapter matters


def test_without_fast_nothing_changes(folder):
    plain, model = loaded(folder.parent / "plain"), loaded(folder)
    assert max_difference(plain.sample("a cat", **QUICK)[0], model.sample("a cat", **QUICK)[0]) == 0
    assert model.request("a cat").lora == ()


def test_options_override_fast_settings(folder):
    model = loaded(folder)
    assert [each.steps for each in model.request("a cat", fast=True, steps=[5, 3]).settings] == [5, 3]
    assert model.request("a cat", fast=True, lora={"fast": 0.5}).lora == (("fast", 0.5),)


def test_a_cascade_without_fast_settings_says_what_to_do():
    with pytest.raises(UserError, match="no fast settings: train `imagen train distill"):
        cascade().request("a cat", fast=True)


def test_an_image_is_regenerated(folder, tmp_path):
    model = loaded(folder)
    (path,) = write_samples(model, "a cat", tmp_path, fast=True, **QUICK)
    request, place = regenerate_request(loaded(folder), path)
    assert request.lora == (("fast", 1.0),) and [each.steps for each in request.settings] == [2, 1]
    again = list(model.run(request, progress=False))[place]
    assert max_difference(again, model.sample("a cat", fast=True, **QUICK)[0]) == 0


def test_copies_keep_fast_settings(folder, tmp_path):
    assemble([folder], tmp_path / "joined")
    loaded(folder).save(tmp_path / "saved")
    wanted = [record.fast for record in read_manifest(folder).stages]
    for copy in ("joined", "saved"):
        assert [record.fast for record in read_manifest(tmp_path / copy).stages] == wanted
    convert_to_float16(tmp_path / "joined")
    adapter = Cascade.load(tmp_path / "joined").stages[0].adapters["fast"]
    for name, factors in Cascade.load(folder).stages[0].adapters["fast"].modules.items():
        torch.testing.assert_close(adapter.modules[name].B, factors.B, rtol=1e-3, atol=1e-5)
    files = {path.name for path in (tmp_path / "joined").glob("fast-16-*")}
    assert files == {read_manifest(tmp_path / "joined").stages[0].fast.lora}  # the float32 file is removed


def test_mistakes(folder, tmp_path):
    source = save_cascade(stage(16), stage(32, 16), path=tmp_path / "plain")
    other = save_cascade(stage(16, seed=3), path=tmp_path / "other")
    run = distilled_run(tmp_path / "run", other)
    with pytest.raises(UserError, match="was not distilled from the weights of the cascade's stage 16"):
        add_fast(source, [run], {})
    for config in ({"distill": {"teacher_steps": 0}}, {"distill": None}, {}, []):  # such as of `finetune_lora`
        write_json(run / "config.json", config)
        with pytest.raises(UserError, match=r"run is not a run of `imagen train distill`"):
            add_fast(source, [run], {})
    (run / "lora.safetensors").unlink()
    with pytest.raises(UserError, match=r"has no lora\.safetensors"):
        add_fast(source, [run], {})
    with pytest.raises(UserError, match="no stage 64, only 16, 32"):
        add_fast(source, [], {64: 2})
    assert all(record.fast is None for record in read_manifest(source).stages)


def test_the_name_of_the_adapter_is_reserved(folder, tmp_path):
    """Another LoRA of that name would be used by `fast`, and saved as its adapter."""
    model = loaded(folder.parent / "plain")
    with pytest.raises(UserError, match="'fast' is the name of the adapter for few steps; give this one another name"):
        model.load_lora(lora_file(tmp_path / "fast.safetensors", model))


def test_levels_outside_of_the_schedule(folder, tmp_path):
    """A file from elsewhere may name them, and so may the arguments of `sample`."""
    model = loaded(folder)
    with pytest.raises(UserError, match=r"logsnr_range is \(50, 60\).*the noise schedule has -?\d+ to \d+"):
        model.sample("a cat", spacing="logsnr", logsnr_range=(50.0, 60.0), steps=3, progress=False)


def test_a_damaged_adapter_is_refused(folder, tmp_path):
    assemble([folder], tmp_path / "c")
    flip_a_byte(tmp_path / "c", "fast-16-*")
    with pytest.raises(UserError, match=r"fast-16-.* is damaged"):
        Cascade.load(tmp_path / "c")
