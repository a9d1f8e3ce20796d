"""Compare adapters with those of peft on diffusers' U-Nets, in every supported file format."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from pipelines import random_unet
from published import SMALL_I, SMALL_II
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from imagen.convert.structure import read_unet_config
from imagen.errors import UserError
from imagen.lora import Adapter, Factors, Fitted, applied, fit, read_adapter
from imagen.models.diffusers_names import to_ours
from imagen.models.unet import UNet

peft = pytest.importorskip("peft")
diffusers = pytest.importorskip("diffusers")

# Attention, convolutions and embeddings, with different ranks and alphas.
LORA = {
    "r": 4,
    "lora_alpha": 6,
    "target_modules": ["to_q", "add_k_proj", "to_out.0", "conv1", "conv_in", "conv_shortcut", "encoder_hid_proj"],
    "rank_pattern": {"conv1": 3},
    "alpha_pattern": {"conv1": 12},
    "init_lora_weights": False,
}


def convert_unet(unet: nn.Module, config: dict[str, Any]) -> UNet:
    structure = read_unet_config(config, "config.json")
    with torch.device("meta"):
        result = UNet(structure)
    result.load_state_dict(to_ours(unet.state_dict(), structure, "weights"), assign=True)
    return result.eval()


def inputs(config: dict[str, Any]) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    x, low = torch.randn(2, 2, 3, 16, 16, generator=generator)
    cond = {"text": torch.randn(2, 7, 24, generator=generator), "text_mask": torch.ones(2, 7, dtype=torch.bool)}
    if config["in_channels"] == 6:
        cond |= {"low_res": low, "low_res_noise": torch.tensor([250, 3])}
    return x, torch.tensor([999, 40]), cond


def save_as_diffusers(unet: Any, folder: Path) -> Path:
    unet.save_lora_adapter(folder)
    return folder / "pytorch_lora_weights.safetensors"


def save_as_pipeline(unet: Any, folder: Path) -> Path:
    """Save with the prefix and the metadata that pipelines write."""
    path = save_as_diffusers(unet, folder)
    config = json.loads(peft_settings(unet))
    metadata = {"lora_adapter_metadata": json.dumps({f"unet.{key}": value for key, value in config.items()})}
    save_file({f"unet.{key}": value for key, value in load_file(path).items()}, path, metadata)
    return path


def peft_settings(unet: Any) -> str:
    value = {key: each for key, each in unet.peft_config["default"].to_dict().items() if key in LORA}
    return json.dumps(value | {"use_dora": False}, default=sorted)


def save_as_peft(unet: Any, folder: Path) -> Path:
    state = peft.get_peft_model_state_dict(unet)
    folder.mkdir(parents=True)
    save_file({f"base_model.model.{key}": value for key, value in state.items()}, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(peft_settings(unet))
    return folder


def save_as_kohya(unet: Any, folder: Path) -> Path:
    path = folder / "style.safetensors"
    folder.mkdir(parents=True)
    tensors = {}
    for key, value in peft.get_peft_model_state_dict(unet).items():
        module, kind, _ = key.rsplit(".", 2)
        name, kind = "lora_unet_" + module.replace(".", "_"), {"lora_A": "lora_down", "lora_B": "lora_up"}[kind]
        tensors[f"{name}.{kind}.weight"] = value
        tensors[f"{name}.alpha"] = torch.tensor(12.0 if module.endswith("conv1") else 6.0)
    save_file(tensors, path)
    return path


@pytest.mark.parametrize("save", [save_as_diffusers, save_as_pipeline, save_as_peft, save_as_kohya])
@pytest.mark.parametrize("config", [SMALL_I, SMALL_II], ids=["I", "II"])
@torch.no_grad()
def test_outputs_equal_those_of_peft(config: dict[str, Any], save: Any, tmp_path: Path) -> None:
    unet = random_unet(config)
    mine = convert_unet(unet, config)  # before peft wraps the layers
    x, time, cond = inputs(config)
    plain = mine(x, time, **cond)
    torch.manual_seed(2)
    unet.add_adapter(peft.LoraConfig(**LORA))
    seen = torch.cat([x, cond["low_res"]], 1) if "low_res" in cond else x
    call = {"encoder_hidden_states": cond["text"], "class_labels": cond.get("low_res_noise")}

    fitted = fit(read_adapter(save(unet, tmp_path / "adapter")), mine)
    for weight in (1.0, 0.4):
        for module in unet.modules():
            if isinstance(module, peft.tuners.lora.LoraLayer):
                module.set_scale("default", weight)
        expected = unet(seen, time, **call).sample
        with applied(mine, [(fitted, weight)]):
            torch.testing.assert_close(mine(x, time, **cond), expected, rtol=0, atol=5e-5)
    assert (expected - plain).abs().max() > 0.01
    assert torch.equal(mine(x, time, **cond), plain)  # the adapter leaves no trace


@torch.no_grad()
def test_several_adapters_add_up() -> None:
    torch.manual_seed(0)
    layer = nn.Sequential(nn.Linear(6, 5))
    parts = []
    change = torch.zeros(5, 6)
    for rank, scale, weight in ((2, 0.5, 0.8), (3, 2.0, -1.5)):
        A, B = torch.randn(rank, 6), torch.randn(5, rank)
        parts.append((Fitted(Adapter("a", "", {}), {"0": Factors(A, B, scale)}), weight))
        change += weight * scale * B @ A
    x = torch.randn(4, 6)
    expected = nn.functional.linear(x, layer[0].weight + change, layer[0].bias)
    with applied(layer, parts):
        torch.testing.assert_close(layer(x), expected)


GOOD = {"conv_in.lora_A.weight": torch.zeros(2, 3, 3, 3), "conv_in.lora_B.weight": torch.zeros(32, 2, 1, 1)}


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({}, "contains no LoRA"),
        ({"conv_in.lora_A.weight": GOOD["conv_in.lora_A.weight"]}, "no up projection"),
        ({"conv_in.lora_B.weight": GOOD["conv_in.lora_B.weight"]}, "no down projection"),
        (GOOD | {"conv_in.lora_magnitude_vector": torch.zeros(32)}, "not a LoRA factor"),
        (GOOD | {"text_encoder.q.lora_A.weight": torch.zeros(2, 2)}, "text encoder"),
        (GOOD | {"conv_in.alpha": torch.tensor(float("nan"))}, "finite"),
        (GOOD | {"conv_in.lora_A.weight": torch.full((2, 3, 3, 3), float("inf"))}, "not finite"),
        (GOOD | {"conv_in.lora_A.weight": torch.zeros(3, 3, 3, 3)}, "do not fit together"),
        (GOOD | {"conv_in.lora_A.weight": torch.zeros(2, 27)}, "do not fit together"),
    ],
)
def test_damaged_files_are_rejected(tensors: dict[str, Tensor], message: str, tmp_path: Path) -> None:
    save_file(tensors, tmp_path / "a.safetensors")
    with pytest.raises(UserError, match=message):
        read_adapter(tmp_path / "a.safetensors")


@pytest.mark.parametrize("settings", [{"alpha_pattern": ["x"]}, {"lora_alpha": 10**400}, {"lora_alpha": "8"}])
def test_malformed_settings_are_rejected(settings: dict[str, object], tmp_path: Path) -> None:
    metadata = {"lora_adapter_metadata": json.dumps(settings)}
    save_file(GOOD, tmp_path / "a.safetensors", metadata=metadata)
    with pytest.raises(UserError, match=r"alpha(_pattern)? is"):
        read_adapter(tmp_path / "a.safetensors")


def test_unsupported_files_are_rejected(tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").write_bytes(b"\x80\x04K\x01.")  # a pickle
    (tmp_path / "saved" / "adapter_model.safetensors").mkdir(parents=True)
    for path, message in (
        (tmp_path / "a.safetensors", "not a safetensors file"),
        (tmp_path / "b", "does not exist"),
        (tmp_path / "saved", r"adapter_model\.safetensors is a folder, not a file"),
        (Path("/dev/null"), "is a device, not a file"),
    ):
        with pytest.raises(UserError, match=message):
            read_adapter(path)


def test_an_adapter_of_another_model_is_rejected(tmp_path: Path) -> None:
    with torch.device("meta"):
        unet = UNet(read_unet_config(SMALL_I, "config.json"))
    save_file(GOOD, tmp_path / "a.safetensors")
    assert set(fit(read_adapter(tmp_path / "a.safetensors"), unet).modules) == {"conv_in"}
    renamed = {key.replace("conv_in", "conv_inner"): value for key, value in GOOD.items()}
    wide = {key: value.repeat(2, *[1] * 3) if "_B" in key else value for key, value in GOOD.items()}
    for tensors, message in ((renamed, "no layer 'conv_inner'"), (wide, r"is \[32, 3, 3, 3\] in the U-Net")):
        save_file(tensors, tmp_path / "a.safetensors")
        with pytest.raises(UserError, match=message):
            fit(read_adapter(tmp_path / "a.safetensors"), unet)
