"""Test the extractors of transformers with small random networks: what identifies them, their dtype and resizing."""

import contextlib
import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny_encoders import save_tokenizer

from imagen.errors import UserError
from imagen.evaluate.extractors.hub import Clip, DinoV2, prepare

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def save_dinov2(folder, *, seed=0, dtype=torch.float32, mean=MEAN):
    """Write a small DINOv2 with the published preprocessing, which crops, to `folder`."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(seed)
    config = transformers.Dinov2Config(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=224)
    transformers.Dinov2Model(config).to(dtype).save_pretrained(folder)
    crop = {"size": {"shortest_edge": 256}, "crop_size": {"height": 224, "width": 224}}
    transformers.BitImageProcessor(**crop, image_mean=mean, image_std=STD).save_pretrained(folder)


@pytest.fixture
def picture():
    return torch.randint(0, 256, (1, 3, 64, 64), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def test_a_name_identifies_weights_and_preprocessing_not_the_folder(tmp_path):
    """Features are cached by it, and the content of a folder may change."""
    save_dinov2(tmp_path / "a")
    first = DinoV2(str(tmp_path / "a")).name
    save_dinov2(tmp_path / "b")
    assert DinoV2(str(tmp_path / "b")).name == first == DinoV2(str(tmp_path / "a")).name
    save_dinov2(tmp_path / "a", seed=1)
    weights = DinoV2(str(tmp_path / "a")).name
    save_dinov2(tmp_path / "a", seed=1, mean=(0.5, 0.5, 0.5))
    assert len({first, weights, DinoV2(str(tmp_path / "a")).name}) == 3


def test_features_are_computed_in_float32(tmp_path, picture):
    """Versions of transformers differ in whether weights that are stored in half precision are also used in it."""
    save_dinov2(tmp_path, dtype=torch.float16)
    extractor = DinoV2(str(tmp_path))
    assert {parameter.dtype for parameter in extractor.model.parameters()} == {torch.float32}
    assert extractor(picture).dtype == torch.float32


def test_dinov2_sees_the_whole_image_at_224(tmp_path, picture):
    """As in the code of 2306.04675; the published preprocessing crops an eighth of each side away."""
    save_dinov2(tmp_path)
    found = prepare(DinoV2(str(tmp_path)).processor, picture, torch.device("cpu"))
    image = Image.fromarray(picture[0].permute(1, 2, 0).numpy()).resize((224, 224), Image.Resampling.BICUBIC)
    expected = (np.asarray(image) / 255 - MEAN) / STD
    assert found.shape == (1, 3, 224, 224)
    np.testing.assert_allclose(found[0].permute(1, 2, 0).numpy(), expected, atol=1e-5)


def test_clip_truncates_captions_to_the_text_encoders_length(tmp_path, picture):
    """Also if the tokenizer's config does not say how long it is."""
    transformers = pytest.importorskip("transformers")
    small = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {**small, "vocab_size": 20, "max_position_embeddings": 8, "pad_token_id": 0, "eos_token_id": 1}
    torch.manual_seed(0)
    config = transformers.CLIPConfig(text_config=text, vision_config={**small, "image_size": 28, "patch_size": 14})
    transformers.CLIPModel(config).save_pretrained(tmp_path)
    side = {"size": {"shortest_edge": 28}, "crop_size": {"height": 28, "width": 28}}
    transformers.CLIPImageProcessor(**side).save_pretrained(tmp_path)
    save_tokenizer(tmp_path)
    clip = Clip(str(tmp_path))
    first = "a red apple on the blue table"  # with the end, eight tokens
    found = clip.embed([first, f"{first} steam train"])
    assert torch.equal(found[0], found[1]) and found.shape == clip(picture).expand(2, -1).shape
    assert not torch.equal(found[0], clip.embed(["a red apple"])[0])


def test_weights_that_do_not_fit_are_an_error(tmp_path):
    """transformers would draw what is missing at random, and only warn."""
    save_dinov2(tmp_path)
    with pytest.raises(UserError, match="weights of the type 'dinov2'; the feature extractor needs 'clip'"):
        Clip(str(tmp_path))
    path, missing = tmp_path / "model.safetensors", "encoder.layer.0.mlp.fc1.weight"
    whole, complete = load_file(path), path.read_bytes()
    for others in ({}, {missing: torch.zeros(3, 5)}):
        save_file({**{name: each for name, each in whole.items() if name != missing}, **others}, path, {"format": "pt"})
        with pytest.raises(UserError, match=f"has no {missing} of the shape"):
            DinoV2(str(tmp_path))
    path.write_bytes(complete[:-100])
    with pytest.raises(UserError, match=r"the feature extractor cannot be loaded: .*incomplete"):
        DinoV2(str(tmp_path))
    path.write_bytes(complete)
    DinoV2(str(tmp_path))


def test_no_code_of_the_weights_folder_runs(tmp_path, picture, monkeypatch):
    save_dinov2(tmp_path)
    config = json.loads((tmp_path / "preprocessor_config.json").read_text())
    config |= {"image_processor_type": "Processor", "auto_map": {"AutoImageProcessor": "foreign.Processor"}}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(config))
    (tmp_path / "foreign.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Processor: pass\n")
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    with contextlib.suppress(UserError):
        DinoV2(str(tmp_path))
    assert not (tmp_path / "ran").exists()
