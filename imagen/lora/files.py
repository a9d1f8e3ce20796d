"""Read LoRA files: safetensors in the formats of peft, diffusers and kohya's scripts.

    peft        base_model.model.MODULE.lora_A.weight    alpha in adapter_config.json beside the file
    diffusers   unet.MODULE.lora_A.weight                alpha in the file's metadata, `lora_adapter_metadata`
    kohya       lora_unet_MODULE.lora_down.weight        alpha as a tensor, lora_unet_MODULE.alpha

MODULE is a name of diffusers' U-Net or of ours; kohya writes `_` for `.`. Without an alpha, alpha / r is 1.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from imagen.errors import UserError, check_number, quoted
from imagen.files import open_given, parse_json, read_json

MOST_RANK = 4_096
CONFIG = "adapter_config.json"  # peft's settings, beside its weights

_KEY = re.compile(
    r"(?:base_model\.model\.|unet\.|lora_unet_)?(?P<module>[^.].*?)\."
    r"(?:(?P<down>lora_A(?:\.\w+)?\.weight|lora\.down\.weight|lora_down\.weight)"
    r"|(?P<up>lora_B(?:\.\w+)?\.weight|lora\.up\.weight|lora_up\.weight)"
    r"|(?P<alpha>alpha))"
)


@dataclass(frozen=True, eq=False)
class Factors:
    """The change of one linear layer or convolution: scale * B A, float32.

    A: [r, in] or [r, in, kh, kw]. B: [out, r] or [out, r, 1, 1]. scale: alpha / r.
    """

    A: Tensor
    B: Tensor
    scale: float


@dataclass(frozen=True, eq=False)
class Adapter:
    """The content of a LoRA file."""

    name: str  # see `adapter_name`
    sha256: str
    modules: Mapping[str, Factors]  # by the names of modules in the file, without prefixes


def read_adapter(path: str | Path) -> Adapter:
    """Read the LoRA file, or peft's folder, at `path`.

    Raises UserError if it is not a safetensors file, or contains anything but low-rank factors of linear layers and
    convolutions of a U-Net.
    """
    path = Path(path)
    if path.is_dir():  # peft saves a folder
        path = path / "adapter_model.safetensors"
    if not path.exists():
        raise UserError(f"{path} does not exist; expected a LoRA file (safetensors)")
    with open_given(path) as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest() if hasattr(hashlib, "file_digest") else _hash(file)
    try:
        with safe_open(path, "pt") as opened:
            metadata = opened.metadata() or {}
            tensors = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118  # not a mapping
    except SafetensorError as error:
        raise UserError(f"{path} is not a safetensors file: {error}") from None
    downs, ups, alphas = _sorted(tensors, path)
    config = _config(path, metadata)
    modules = {}
    for module, A in downs.items():
        if module not in ups:
            raise UserError(f"{path}: {quoted(module)} has a down projection (A) but no up projection (B)")
        B = ups.pop(module)
        _check_factors(path, module, A, B)
        rank = A.shape[0]
        alpha = alphas.pop(module, None)
        alpha = _alpha(config, module, rank, path) if alpha is None else alpha
        scale = alpha / (rank**0.5 if config.get("use_rslora") is True else rank)
        modules[module] = Factors(A.float(), B.float(), scale)
    for left in (*ups, *alphas):
        raise UserError(f"{path}: {quoted(left)} has no down projection (A)")
    if not modules:
        raise UserError(f"{path} contains no LoRA")
    return Adapter(adapter_name(path), sha256, modules)


def adapter_name(path: str | Path) -> str:
    """Return the name of a LoRA file or folder: that of the folder if the file has the name that all runs give it."""
    path = Path(path)
    return path.parent.name if path.stem in ("adapter_model", "lora") and path.parent.name else path.stem


def _sorted(tensors: Mapping[str, Tensor], path: Path) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, float]]:
    """Return (down projections, up projections, alphas), each by module."""
    downs: dict[str, Tensor] = {}
    ups: dict[str, Tensor] = {}
    alphas: dict[str, float] = {}
    for key, tensor in tensors.items():
        if key.startswith(("text_encoder", "lora_te")):
            raise UserError(f"{path} adapts a text encoder ({quoted(key)}); only adapters of the U-Net can be used")
        match = _KEY.fullmatch(key)
        if match is None:
            raise UserError(f"{path}: tensor {quoted(key)} is not a LoRA factor; DoRA and biases are not supported")
        module = match["module"]
        if match["alpha"]:
            if tensor.numel() != 1 or not torch.isfinite(tensor.float()).all():
                raise UserError(f"{path}: {quoted(key)} must be one finite number")
            alphas[module] = float(tensor)
            continue
        factors = downs if match["down"] else ups
        if module in factors:
            raise UserError(f"{path}: {quoted(module)} has the same factor twice")
        factors[module] = tensor
    return downs, ups, alphas


def _check_factors(path: Path, module: str, A: Tensor, B: Tensor) -> None:
    for name, factor in (("A", A), ("B", B)):
        if factor.ndim not in (2, 4) or not factor.is_floating_point():
            raise UserError(f"{path}: {name} of {quoted(module)} is {factor.dtype} {list(factor.shape)}, not a matrix")
        if not torch.isfinite(factor).all():
            raise UserError(f"{path}: {name} of {quoted(module)} has values that are not finite")
    if A.ndim != B.ndim or A.shape[0] != B.shape[1] or B.shape[2:].numel() != 1:
        raise UserError(f"{path}: A {list(A.shape)} and B {list(B.shape)} of {quoted(module)} do not fit together")
    if not 1 <= A.shape[0] <= MOST_RANK:
        raise UserError(f"{path}: {quoted(module)} has rank {A.shape[0]}; it must be 1 to {MOST_RANK}")


def _config(path: Path, metadata: Mapping[str, str]) -> dict[str, Any]:
    """Return peft's settings, from the file's metadata (diffusers) or adapter_config.json beside it, or {}."""
    if (text := metadata.get("lora_adapter_metadata")) is not None:
        try:
            value = parse_json(text)
        except ValueError as error:
            raise UserError(f"{path}: metadata 'lora_adapter_metadata' is not JSON: {error}") from None
    elif (path.parent / CONFIG).is_file() and path.stem == "adapter_model":
        value = read_json(path.parent / CONFIG)
    else:
        return {}
    if not isinstance(value, dict):
        raise UserError(f"{path}: the adapter's settings are not a JSON object: {quoted(json.dumps(value))}")
    config = {key.removeprefix("unet."): each for key, each in value.items()}
    if config.get("use_dora"):
        raise UserError(f"{path} is a DoRA adapter; only LoRA is supported")
    return config


def _alpha(config: Mapping[str, Any], module: str, rank: int, path: Path) -> float:
    """Return the alpha of a module: the one in the settings, or else its rank."""
    alpha, patterns = config.get("lora_alpha", rank), config.get("alpha_pattern") or {}
    if not isinstance(patterns, dict):
        raise UserError(f"{path}: alpha_pattern is not a JSON object: {quoted(json.dumps(patterns))}")
    for pattern, value in patterns.items():
        # peft also allows regular expressions. A file's expressions are untrusted, so only names and their ends match.
        if module == pattern or module.endswith(f".{pattern}"):
            alpha = value
            break
    if isinstance(alpha, bool) or not isinstance(alpha, (int, float)):
        raise UserError(f"{path}: alpha is {quoted(json.dumps(alpha))}, not a number")
    check_number(f"{path}: alpha", alpha)
    return float(alpha)


def _hash(file: Any) -> str:
    digest = hashlib.sha256()
    while chunk := file.read(1 << 22):
        digest.update(chunk)
    return digest.hexdigest()
