"""Convert DeepFloyd IF's original format. Structures come from IF's own code (github.com/deep-floyd/IF, ffc8163)."""

import hashlib
import math
import pickle
import zipfile
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from pipelines import random_unet, tokenizer_and_encoder
from published import I_XL, II_L, SMALL_I, SMALL_II, SMALL_III
from torch import Tensor

from imagen.cascade import Cascade
from imagen.convert.deepfloyd import convert_deepfloyd, read_stage, read_weights
from imagen.convert.original import to_diffusers, unet_config
from imagen.convert.structure import read_unet_config
from imagen.errors import UserError
from imagen.models.diffusers_names import to_ours

pytest.importorskip("diffusers")

COMMON = {
    "activation": "gelu",
    "att_pool_heads": 4,
    "conv_resample": True,
    "dropout": 0.0,
    "encoder_channels": 64,
    "encoder_dim": 24,
    "in_channels": 6,
    "model_channels": 32,
    "num_head_channels": 8,
    "out_channels": 6,
    "precision": "bf16",
    "resblock_updown": True,
    "use_scale_shift_norm": True,
}
LATER = {"efficient_activation": True, "scale_skip_connection": True}
ONE = COMMON | {
    "attention_resolutions": "8,4",
    "channel_mult": "1,2,2",
    "image_size": 16,
    "in_channels": 3,
    "num_res_blocks": 2,
}
TWO = COMMON | LATER | {
    "attention_resolutions": "16,8",
    "channel_mult": [1, 1, 2],
    "image_size": 32,
    "num_res_blocks": [1, 2, 2],
}  # fmt: skip
THREE = COMMON | LATER | {
    "attention_resolutions": "16",
    "channel_mult": "1,1,2",
    "disable_self_attentions": "16",
    "image_size": 64,
    "num_res_blocks": [1, 2, 1],
}  # fmt: skip
# Hashes of the sorted lines "name shape" of IF's UNetModel and SuperResUNetModel with these settings.
CASES = {
    "I": (ONE, SMALL_I | {"time_embedding_dim": 64}, "a120618cf8a503a1"),
    "II": (TWO, SMALL_II, "8567a0cfc5ba95e7"),
    "III": (THREE, SMALL_III, "f52a3688ae55e74f"),
}
BLOCK = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
OTHERS = {
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "class_embedding.linear_1": "aug_proj.0",
    "class_embedding.linear_2": "aug_proj.2",
    "encoder_hid_proj": "encoder_proj",
    "add_embedding.norm1": "encoder_pooling.0",
    "add_embedding.proj": "encoder_pooling.2",
    "add_embedding.norm2": "encoder_pooling.3",
}


def original_state_dict(unet: torch.nn.Module) -> dict[str, Tensor]:
    """Return the state dict of diffusers' U-Net in IF's original format."""
    made: dict[str, Tensor] = {}

    def put(module: Any, name: str) -> None:
        made.update({f"{name}.{key}": tensor for key, tensor in module.state_dict().items()})

    def residual(module: Any, name: str) -> None:
        for theirs, first in BLOCK.items():
            if getattr(module, theirs, None) is not None:
                put(getattr(module, theirs), f"{name}.{first}")

    def attention(module: Any, name: str) -> None:
        def interleave_heads(*layers: Any) -> dict[str, Tensor]:
            weight, bias = (
                torch.cat(
                    [
                        piece
                        for head in zip(*(getattr(each, key).split(8) for each in layers), strict=True)
                        for piece in head
                    ]
                )
                for key in ("weight", "bias")
            )
            return {"weight": weight[..., None], "bias": bias}

        own = [module.to_q] if module.to_k is None else [module.to_q, module.to_k, module.to_v]
        made.update({f"{name}.qkv.{key}": tensor for key, tensor in interleave_heads(*own).items()})
        text = interleave_heads(module.add_k_proj, module.add_v_proj)
        made.update({f"{name}.encoder_kv.{key}": tensor for key, tensor in text.items()})
        put(module.group_norm, f"{name}.norm")
        put(module.norm_cross, f"{name}.norm_encoder")
        made[f"{name}.proj_out.weight"], made[f"{name}.proj_out.bias"] = (
            module.to_out[0].weight[..., None],
            module.to_out[0].bias,
        )

    inputs: list[list[Any]] = [[]]  # block 0 is the convolution of the stem
    outputs: list[list[Any]] = []
    for blocks, paths in ((inputs, unet.down_blocks), (outputs, unet.up_blocks)):
        for level in paths:
            attentions = getattr(level, "attentions", [None] * len(level.resnets))
            blocks += [[each for each in pair if each] for pair in zip(level.resnets, attentions, strict=True)]
            if getattr(level, "downsamplers", None):
                blocks.append([level.downsamplers[0]])
            if getattr(level, "upsamplers", None):
                blocks[-1].append(level.upsamplers[0])
    middle = [unet.mid_block.resnets[0], unet.mid_block.attentions[0], unet.mid_block.resnets[1]]
    named = [(f"middle_block.{i}", module) for i, module in enumerate(middle)]
    for way, blocks in (("input", inputs), ("output", outputs)):
        named += [(f"{way}_blocks.{i}.{j}", each) for i, block in enumerate(blocks) for j, each in enumerate(block)]
    for name, module in named:
        (attention if hasattr(module, "to_q") else residual)(module, name)
    for theirs, first in OTHERS.items():
        if (module := dict(unet.named_modules()).get(theirs)) is not None:
            put(module, first)
    put(unet.add_embedding.pool, "encoder_pooling.1")
    return {name: tensor.detach() for name, tensor in made.items()}


def save(folder: Path, params: dict[str, Any], tensors: Any) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.yml").write_text(yaml.safe_dump({"params": params}))
    torch.save(tensors, folder / "pytorch_model.bin")
    return folder


@pytest.mark.parametrize("stage", CASES)
def test_every_tensor_is_mapped(stage: str, tmp_path: Path) -> None:
    params, config, digest = CASES[stage]
    unet = random_unet(config)
    tensors = original_state_dict(unet)
    listing = "\n".join(sorted(f"{name} {tuple(tensor.shape)}" for name, tensor in tensors.items()))
    assert hashlib.sha256(listing.encode()).hexdigest()[:16] == digest
    folder = save(tmp_path / "first", params, tensors)
    found = read_stage(folder)
    assert found.unet == read_unet_config(config, "published")
    weights = read_weights(folder, found)
    expected = to_ours(unet.state_dict(), found.unet, "diffusers")
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[name], expected[name]) for name in expected)


def test_the_published_structures_are_read() -> None:
    first = COMMON | {"att_pool_heads": 64, "encoder_dim": 4096, "num_head_channels": 64}
    xl = first | {"channel_mult": "1,2,3,4", "encoder_channels": 2816, "image_size": 64, "in_channels": 3}
    xl |= {"attention_resolutions": "32,16,8", "model_channels": 704, "num_res_blocks": 3}
    large = first | LATER | {"channel_mult": "1,2,4,6,8", "encoder_channels": 1280, "image_size": 256}
    large |= {"attention_resolutions": "32,16", "model_channels": 160, "num_res_blocks": "2,2,3,5,5"}
    for params, published in ((xl, I_XL), (large, II_L)):
        found = read_unet_config(unet_config(params, "config.yml"), "config.yml")
        assert found == read_unet_config(published, "published")


def test_two_stages_convert_to_a_cascade(tmp_path: Path) -> None:
    folders = [
        save(tmp_path / name, CASES[name][0], original_state_dict(random_unet(CASES[name][1]))) for name in ("I", "III")
    ]
    tokenizer, encoder = tokenizer_and_encoder()
    tokenizer.save_pretrained(tmp_path / "t5")
    encoder.save_pretrained(tmp_path / "t5")
    one, three = convert_deepfloyd(folders, tmp_path / "cascade", encoder=str(tmp_path / "t5"))
    assert (one.resolution, three.low_resolution, three.resolution) == (16, 16, 64)
    assert (one.sampling.max_scale, three.sampling.max_scale, one.sampling.percentile) == (1.5, 1.0, 0.95)
    assert one.schedule.kind == three.low_res_schedule.kind == "discrete_cosine"
    (picture,) = Cascade.load(tmp_path / "cascade").sample(["a red apple"], steps=2, progress=False)
    assert picture.size == (64, 64)


def without(name: str) -> Callable[[dict[str, Tensor]], Any]:
    return lambda tensors: {key: tensor for key, tensor in tensors.items() if key != name}


@pytest.mark.parametrize(
    ("change", "tensors", "reason"),
    [
        ({"channel_mult": None}, None, r"config\.yml: params\.channel_mult is None"),
        ({"use_scale_shift_norm": False}, None, r"params\.use_scale_shift_norm is False; only True"),
        ({"model_channels": "wide"}, None, r"params\.model_channels is 'wide'; it must be a whole number"),
        ({"channel_mult": "1,,2"}, None, r"params\.channel_mult is '1,,2'; it must be numbers above 0"),
        ({"attention_resolutions": "8,0"}, None, r"params\.attention_resolutions is '8,0'"),
        ({"dropout": "none"}, None, r"params\.dropout is 'none'; it must be a number"),
        ({"num_head_channels": 7}, None, r"not divisible by head_channels 7|does not divide into heads of 7"),
        ({}, lambda tensors: tensors | {"middle_block.1.qkv.bias": torch.zeros(5)}, r"does not divide into heads of 8"),
        ({"use_clip": True}, None, r"params\.use_clip is True; this version of imagen does not support it"),
        ({"activation": "gelu_jit"}, None, r"act_fn is 'gelu_jit'"),
        ({"num_res_blocks": [2, 2]}, None, r"layers_per_block is \[2, 2\]"),
        ({}, without("out.2.bias"), r"tensor 'conv_out\.bias' is missing"),
        ({}, without("input_blocks.3.0.in_layers.0.bias"), r"tensor .* is missing"),
        (
            {},
            lambda tensors: tensors | {"label_emb.weight": torch.zeros(3)},
            r"'label_emb\.weight' is not in the U-Net",
        ),
        ({}, lambda tensors: [1, 2], r"not a dictionary of tensors"),
        ({}, lambda tensors: Path("x"), r"which may run code"),
        ({"channel_mult": [1, math.inf]}, None, r"params\.channel_mult is \[1, inf\]"),
        ({"channel_mult": [1] * 100}, None, r"params\.channel_mult"),
        ({"model_channels": 10**9}, None, r"params\.model_channels is 1000000000"),
        ({}, lambda tensors: tensors | {7: torch.zeros(3)}, r"7 is not the name of a tensor"),
        ({}, lambda tensors: tensors | {"middle_block.1.qkv.bias": torch.tensor(1.0)}, r"one to four dimensions"),
        (
            {},
            lambda tensors: tensors | {"out.2.bias": torch.zeros(3, device="meta")},
            r"not a dense floating-point tensor",
        ),
        (
            {},
            lambda tensors: tensors | {"out.2.bias": torch.zeros(3, dtype=torch.int8)},
            r"not a dense floating-point tensor",
        ),
        (
            {},
            lambda tensors: tensors | {"out.2.bias": torch.zeros(3).to_sparse()},
            r"not a dense floating-point tensor",
        ),
    ],
)
def test_unsupported_folders_are_rejected(tmp_path: Path, change: dict, tensors: Callable | None, reason: str) -> None:
    made = original_state_dict(random_unet(CASES["I"][1]))
    folder = save(tmp_path / "first", ONE | change, made if tensors is None else tensors(made))
    with pytest.raises(UserError, match=reason):
        read_weights(folder, read_stage(folder))


def test_invalid_checkpoints_are_rejected(tmp_path: Path) -> None:
    folder = save(tmp_path / "first", ONE, {})
    stage = read_stage(folder)
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps({"a": print}))
    with pytest.raises(UserError, match=r"pytorch_model\.bin is damaged, or contains more than tensors"):
        read_weights(folder, stage)
    for damaged in (b"\x80\x02.", b"\x80\x02h\x05.", b"\x80\x02J\x01."):
        with zipfile.ZipFile(folder / "pytorch_model.bin", "w") as archive:
            archive.writestr("archive/data.pkl", damaged)
            archive.writestr("archive/version", b"3\n")
        with pytest.raises(UserError, match=r"pytorch_model\.bin is damaged"):
            read_weights(folder, stage)
    (folder / "pytorch_model.bin").unlink()
    with pytest.raises(UserError, match=r"contains no pytorch_model\.bin"):
        read_weights(folder, stage)
    (folder / "config.yml").write_text("params: [")
    with pytest.raises(UserError, match=r"config\.yml cannot be read as YAML"):
        read_stage(folder)
    (folder / "config.yml").write_text("params: 3")
    with pytest.raises(UserError, match=r"config\.yml has no `params`"):
        read_stage(folder)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (
            "a: &a [1]\n" + "".join(f"{b}: &{b} [*{a}, *{a}]\n" for a, b in pairwise("abcdefghijklmnopqrstuvwxyz")),
            "aliases",
        ),
        ("[" * 5000 + "]" * 5000, "nested too deeply"),
        ("params: '" + "x" * 2**17 + "'", "more than 65536 bytes"),
    ],
    ids=["aliases", "deep", "long"],
)
def test_configs_beyond_the_limits_are_rejected(tmp_path: Path, text: str, reason: str) -> None:
    folder = save(tmp_path / "first", ONE, {})
    (folder / "config.yml").write_text(text)
    with pytest.raises(UserError, match=reason):
        read_stage(folder)


def test_tensors_are_not_copied_unnecessarily() -> None:
    config = CASES["II"][1]
    tensors = original_state_dict(random_unet(config))
    renamed = to_diffusers(tensors, {**config, "attention_head_dim": 8}, "weights")
    assert renamed["conv_in.weight"].data_ptr() == tensors["input_blocks.0.0.weight"].data_ptr()
