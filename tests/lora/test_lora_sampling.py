"""Sample with LoRA: images, the command line, and provenance in files."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from cascades import QUICK, cascade, stage
from lora import lora_file
from PIL import Image

from imagen.cascade import Cascade, read_provenance, regenerate_request, write_samples
from imagen.errors import UserError
from imagen.pictures import read_metadata

SEEDS = {"seeds": [3], **QUICK}


@pytest.fixture
def model() -> Cascade:
    return cascade(stage(16), stage(32, 16))


def pixels(model: Cascade, **options: object) -> np.ndarray:
    return np.asarray(model.sample("cat", **SEEDS, **options)[0]).astype(int)


def merge_into_weights(model: Cascade, path: Path, weight: float, number: int = 0) -> None:
    """Add the LoRA to the weights of a stage, by its definition."""
    from safetensors.torch import load_file

    tensors = load_file(path)
    for name, parameter in model.stages[number].unet.named_parameters():
        if (A := tensors.get(f"{name.removesuffix('weight')}lora_A.weight")) is not None:
            B = tensors[f"{name.removesuffix('weight')}lora_B.weight"]
            parameter.data += weight * (B.flatten(1) @ A.flatten(1)).view_as(parameter)


def test_images_equal_those_of_merged_weights(model: Cascade, tmp_path: Path) -> None:
    path = lora_file(tmp_path / "style.safetensors", model)
    plain = pixels(model)
    assert model.load_lora(path) == "style"
    found = pixels(model, lora={"style": 0.7})
    assert np.abs(found - plain).max() > 3
    assert np.array_equal(pixels(model), plain), "the LoRA leaves no trace"
    assert np.array_equal(pixels(model, lora={"style": 0}), plain)
    merge_into_weights(model, path, 0.7)
    assert np.abs(pixels(model) - found).max() <= 1


def test_a_lora_is_assigned_to_its_stage(tmp_path: Path) -> None:
    model = cascade(stage(16), stage(32, 16))
    path = lora_file(tmp_path / "sr.safetensors", model, 1)
    model.load_lora(path)
    assert [list(each.adapters) for each in model.stages] == [[], ["sr"]]
    base = model.sample("cat", stages=1, lora={"sr": 1.0}, **SEEDS)[0]
    assert np.array_equal(np.asarray(base), np.asarray(model.sample("cat", stages=1, **SEEDS)[0]))
    assert np.abs(pixels(model, lora={"sr": 1.0}) - pixels(model)).max() > 3
    with pytest.raises(UserError, match="stage 16: LoRA sr: "):
        cascade(stage(16)).load_lora(path)
    with pytest.raises(UserError, match="no stage 64"):
        model.load_lora(path, name="again", resolution=64)


def test_invalid_choices_are_rejected(model: Cascade, tmp_path: Path) -> None:
    path = lora_file(tmp_path / "style.safetensors", model)
    model.load_lora(path)
    with pytest.raises(UserError, match="loaded already"):
        model.load_lora(path)
    with pytest.raises(UserError, match=r"no LoRA 'stile' is loaded.*did you mean 'style'"):
        model.request("cat", lora={"stile": 1.0})
    for weight in (float("nan"), 101.0):
        with pytest.raises(UserError, match="the weight of LoRA style is"):
            model.request("cat", lora={"style": weight})


def test_images_record_their_lora_and_can_be_regenerated(model: Cascade, tmp_path: Path) -> None:
    model.save(tmp_path / "cascade")
    path = lora_file(tmp_path / "style.safetensors", model)
    model.load_lora(path)
    (made,) = write_samples(model, ["cat"], tmp_path / "out", seed=3, lora={"style": 0.5}, **QUICK)
    (lora,) = read_provenance(made).lora or ()
    assert (lora.name, lora.weight, len(lora.sha256)) == ("style", 0.5, 64)
    request, index = regenerate_request(model, made, device="cpu")
    again = list(model.run(request, progress=False))[index]
    assert np.array_equal(np.asarray(again), np.asarray(Image.open(made).convert("RGB")))
    with pytest.raises(UserError, match=r"made with LoRA style .* load that file, too"):
        regenerate_request(Cascade.load(tmp_path / "cascade"), made, device="cpu")
    with pytest.raises(UserError, match="made with another lora"):
        write_samples(model, ["cat"], tmp_path / "out", seed=3, **QUICK)


def test_an_image_records_which_stage_was_adapted(tmp_path: Path) -> None:
    model = cascade(stage(16), stage(32, 16))
    model.save(tmp_path / "cascade")
    path = lora_file(tmp_path / "style.safetensors", model)
    model.load_lora(path)
    (made,) = write_samples(model, ["cat"], tmp_path / "out", seed=3, lora={"style": 0.5}, **QUICK)
    assert [lora.resolution for lora in read_provenance(made).lora or ()] == [16]
    model.stages[1].adapters["style"] = model.stages[0].adapters.pop("style")  # as if the layers fitted both
    with pytest.raises(UserError, match=r"on stage 16; load that file, too"):
        regenerate_request(model, made, device="cpu")


def test_adapters_of_several_runs_add_up(tmp_path: Path, imagen) -> None:
    model = Cascade([stage(16, text=False)])
    model.save(tmp_path / "cascade")
    files = [tmp_path / name / "lora.safetensors" for name in ("dog", "ink")]
    for seed, file in enumerate(files):
        file.parent.mkdir()
        lora_file(file, model, seed=seed)
    files.append(tmp_path / "dog.safetensors")
    shutil.copy(files[0], files[2])
    adapters = [argument for file in files for argument in ("--lora", f"{file}:0.5")]
    imagen("sample", tmp_path / "cascade", "", "--steps", "3", "--out", tmp_path / "o", *adapters)
    made = read_provenance(tmp_path / "o" / "0000.png")
    assert [lora.name for lora in made.lora or ()] == ["dog", "ink", "dog-2"]
    again = ["sample", tmp_path / "cascade", "--from", tmp_path / "o" / "0000.png", "--out", tmp_path / "again"]
    imagen(*again, *adapters)
    assert np.array_equal(Image.open(tmp_path / "o" / "0000.png"), Image.open(tmp_path / "again" / "0000.png"))


def test_the_command_line_loads_lora_files(tmp_path: Path, imagen, error_of) -> None:
    model = Cascade([stage(16, text=False)])
    model.save(tmp_path / "cascade")
    path = lora_file(tmp_path / "style.safetensors", model)
    sample = ["sample", tmp_path / "cascade", "", "--steps", "3", "--precision", "fp32", "--out"]
    imagen(*sample, tmp_path / "plain")
    imagen(*sample, tmp_path / "lora", "--lora", f"{path}#16:0.5")
    first = tmp_path / "lora" / "0000.png"
    assert (read_metadata(first) or {})["lora"][0]["weight"] == 0.5
    assert "lora" not in json.dumps(read_metadata(tmp_path / "plain" / "0000.png"))
    assert not np.array_equal(Image.open(first), Image.open(tmp_path / "plain" / "0000.png"))
    imagen("sample", tmp_path / "cascade", "--from", first, "--lora", path, "--out", tmp_path / "again")
    assert np.array_equal(Image.open(first), Image.open(tmp_path / "again" / "0000.png"))
    assert "does not exist" in error_of(*sample, tmp_path / "x", "--lora", tmp_path / "none.safetensors")
    assert "'1.2.3' is not a number" in error_of(*sample, tmp_path / "x", "--lora", f"{path}:1.2.3")


def test_one_file_can_be_loaded_under_two_names(model: Cascade, tmp_path: Path) -> None:
    """The factors add up, and the selection in use can be compared."""
    path = lora_file(tmp_path / "style.safetensors", model)
    model.load_lora(path)
    model.load_lora(path, name="again")
    stage = model.stages[0]
    assert stage.adapted({"style": 1.0}).lora != stage.adapted({"again": 1.0}).lora
    assert np.abs(pixels(model, lora={"style": 0.3, "again": 0.4}) - pixels(model, lora={"style": 0.7})).max() <= 1
