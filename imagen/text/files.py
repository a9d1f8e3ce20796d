"""Check the folder of a Hugging Face encoder before transformers reads it.

transformers trusts these files: it imports the packages that `quantization_config` and attention kernels need, follows
an index to any file, blocks on pipes, and builds any number of layers. So each file that it would open must be a
regular file of plausible size, each JSON file must be well-formed, and `config.json` must describe a model that fits
the stored weights.
"""

import json
import os
import re
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from imagen import limits
from imagen.errors import UserError, check_number, quoted
from imagen.files import read_json

CONFIG, INDEX, WHOLE = "config.json", "model.safetensors.index.json", "model.safetensors"
# JSON files that transformers may open for an encoder or its tokenizer. It ignores others, such as a trainer's state.
JSON = (
    *(CONFIG, INDEX, "generation_config.json", "adapter_config.json", "processor_config.json"),
    *("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "tokenizer.json", "vocab.json"),
    *("preprocessor_config.json", "chat_template.json"),
)
MOST_CONFIG = 2**22  # bytes of config.json; published ones have thousands, or 100,000 with class names
MOST_VOCABULARY = 2**27  # bytes of a tokenizer's file; the largest known has 3 * 2**24
MOST_GROWTH = 2**16  # factor by which normalizers may lengthen a caption; published ones reach 128
_DTYPES = ("float64", "float32", "float16", "bfloat16", "auto")
_ATTENTION = (None, "eager", "sdpa", "flash_attention_2", "flash_attention_3", "flex_attention")
# Fields that make transformers import, download or open something else.
_REFUSED = ("quantization_config", "transformers_weights", "kernel_config", "fusion_config", "distributed_config")
_COUNTS = re.compile(r"layer|block|depth|stage|expert|group|repeat")  # in names of fields: numbers of modules
_UNUSED = re.compile(r"pooler|position_ids")  # in names of weights that do not affect the last hidden states


def check_folder(folder: Path) -> None:
    """Check the files that transformers would read from a local folder, except weights and the model's size.

    Raises UserError, naming the file, if it is not a regular file, too large, invalid JSON, or rejected by
    `check_config`, `check_index` or the checks of tokenizers.
    """
    try:
        entries = sorted(folder.iterdir())
    except OSError as error:
        raise UserError(f"cannot read {folder}: {error.strerror}") from None
    for entry in entries:
        try:
            found = os.stat(entry)
        except OSError:  # a broken link, which transformers cannot open either
            continue
        if stat.S_ISDIR(found.st_mode):
            continue
        if not stat.S_ISREG(found.st_mode):
            raise UserError(f"{entry} is neither a file nor a folder; remove it from the text encoder")
        if found.st_size > MOST_VOCABULARY and entry.suffix in (".json", ".txt", ".model", ".jinja", ".tiktoken"):
            raise UserError(f"{entry} has {found.st_size:,} bytes; the limit for such files is {MOST_VOCABULARY:,}")
    for entry in entries:
        if entry.name in JSON or re.fullmatch(r"tokenizer\..*\.json", entry.name):
            check_file(entry)


def check_file(file: Path, name: str | None = None) -> None:
    """Check one JSON file according to its name. name: if it differs from the file's actual name."""
    name = name or file.name
    if name == "adapter_config.json":
        raise UserError(f"{file}: adapters are not supported; merge the adapter into the weights")
    value = read_json(file, MOST_CONFIG if name == CONFIG else MOST_VOCABULARY)
    if not isinstance(value, dict):
        raise UserError(f"{file} is not a JSON object")
    if name == CONFIG:
        check_config(value, str(file))
    elif name == INDEX:
        check_index(value, file)
    elif name == "tokenizer_config.json":
        _check_tokenizer(value, file)
    elif name.startswith("tokenizer."):
        _check_growth(value, file)


def check_config(config: Mapping[str, Any], where: str) -> None:
    """Raise UserError, beginning with `where` and the field, for an invalid or unsafe `config.json`.

    Fields in `limits.ENCODER` must be whole numbers in their bounds. Other whole numbers, at any depth, have bounds
    according to their names.
    """
    kind = config.get("model_type")
    if not isinstance(kind, str):
        raise UserError(f"{where}: model_type is {_shown(kind)}; it must be the name of an architecture, such as 't5'")
    names = config.get("architectures")
    if names is not None and not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
        raise UserError(f"{where}: architectures is {_shown(names)}; it must be a list of names")
    both = config.get("is_encoder_decoder", False)
    if not isinstance(both, bool):
        raise UserError(f"{where}: is_encoder_decoder is {_shown(both)}; it must be true or false")
    for path, name, value in _fields(config):
        if name in _REFUSED and value:
            raise UserError(f"{where}: {path} is set; only plain weights are supported")
        if name.endswith("implementation") and not (value is None or value in _ATTENTION):
            raise UserError(f"{where}: {path} is {_shown(value)}; downloaded kernels are never run; remove the field")
        if name in ("dtype", "torch_dtype") and not isinstance(value, dict):
            if value is not None and (not isinstance(value, str) or value.removeprefix("torch.") not in _DTYPES):
                raise UserError(f"{where}: {path} is {_shown(value)}; it must be one of {', '.join(_DTYPES)}")
        elif name in limits.ENCODER and not isinstance(value, list | None):  # lists have a number per level
            if type(value) is not int:
                raise UserError(f"{where}: {path} is {_shown(value)}; it must be a whole number")
            check_number(f"{where}: {path}", value, **limits.ENCODER[name])
        elif type(value) is int and not name.endswith(("_id", "_ids", "_idx", "_index")):
            most = limits.ENCODER_COUNT if _COUNTS.search(name) else limits.ENCODER_NUMBER
            check_number(f"{where}: {path}", value, least=-most, most=most)


def check_index(index: Mapping[str, Any], file: Path) -> list[str]:
    """Return the names of the weight files in an index. Raises UserError unless all are safetensors beside it."""
    names = index.get("weight_map")
    if not isinstance(names, dict) or not names:
        raise UserError(f"{file}: weight_map is {_shown(names)}; it must map tensors to files")
    for name in names.values():
        if not isinstance(name, str) or name != os.path.basename(name) or not name.endswith(".safetensors"):
            raise UserError(f"{file}: weight_map names {_shown(name)}; only .safetensors beside it are read")
    if not isinstance(index.get("metadata", {}), dict):
        raise UserError(f"{file}: metadata is {_shown(index['metadata'])}; it must be an object")
    return sorted(set(names.values()))


def weight_files(folder: Path) -> list[Path]:
    """Return the safetensors files that transformers loads from a local folder. Raises UserError if there are none."""
    if (folder / WHOLE).is_file():
        return [folder / WHOLE]
    if (folder / INDEX).is_file():
        return [folder / name for name in check_index(read_json(folder / INDEX, MOST_VOCABULARY), folder / INDEX)]
    pickled = [entry.name for entry in sorted(folder.glob("*")) if entry.suffix in (".bin", ".pt", ".pth", ".ckpt")]
    also = f"; {pickled[0]} is a pickle, which may run code, and is never opened" if pickled else ""
    raise UserError(f"{folder} contains no {WHOLE}{also}; get the weights as safetensors")


def check_size(build: Callable[[], torch.nn.Module], files: Iterable[Path], where: str) -> None:
    """Raise UserError if the model that `build` returns has far more parameters than the weight files.

    transformers would allocate and randomly initialise missing parameters. Here the model is built on the meta device.
    """
    stored = 0
    for file in files:
        try:
            with safe_open(file, framework="pt") as opened:
                shapes = [opened.get_slice(name).get_shape() for name in opened.keys()]  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise UserError(f"{file} cannot be read as safetensors: {error}") from None
        stored += sum(_product(shape) for shape in shapes)
    with torch.device("meta"):
        model = build()
    wanted = sum(tensor.numel() for tensors in (model.parameters(), model.buffers()) for tensor in tensors)
    if wanted > 2 * stored + limits.ENCODER_SLACK:
        raise UserError(f"{where} describes a model of {wanted:,} parameters, but its weight files have {stored:,}")


def check_loaded(model: torch.nn.Module, missing: Iterable[str], where: str) -> None:
    """Raise UserError if required weights were missing in the files; transformers initialises them randomly."""
    state, missing = model.state_dict(), set(missing)
    loaded = {tensor.data_ptr() for name, tensor in state.items() if name not in missing}
    random = sorted(
        name
        for name in missing & state.keys()
        if not _UNUSED.search(name) and state[name].data_ptr() not in loaded  # tied weights have two names
    )
    if random:
        more = f" and {len(random) - 1} more" if len(random) > 1 else ""
        raise UserError(f"{where}: its weights lack {random[0]!r}{more}; they do not fit its config.json")


def _check_tokenizer(config: Mapping[str, Any], file: Path) -> None:
    kind = config.get("tokenizer_class")
    if not isinstance(kind, str | None):
        raise UserError(f"{file}: tokenizer_class is {_shown(kind)}; it must be a name")
    for name, value in config.items():
        if not name.endswith("_file") or not isinstance(value, str) or os.path.basename(value) == value:
            continue
        # Published configs name files on the machine of their authors, which do not exist elsewhere.
        if "\0" in value or os.path.exists(file.parent / value):
            raise UserError(f"{file}: {name} is {_shown(value)}; a tokenizer's files must be in the same folder")


def _check_growth(tokenizer: Mapping[str, Any], file: Path) -> None:
    """Raise UserError if the normalizers together can lengthen a caption by more than MOST_GROWTH."""
    growth = 1
    for part in ("normalizer", "pre_tokenizer"):
        for _, name, value in _fields({part: tokenizer.get(part)}):
            if name == "content" and isinstance(value, str):
                growth *= 1 + len(value)  # an empty pattern matches between any two characters
            elif name == "precompiled_charsmap":
                growth *= 64  # far more than transliteration of a character needs
            if growth > MOST_GROWTH:
                raise UserError(f"{file}: its normalizers can make a caption {growth:,} times as long; remove some")


def _fields(value: Any, path: str = "") -> Iterator[tuple[str, str, Any]]:
    """Yield (path, name, value) of every field and list item, at any depth; `parse_json` limits the depth."""
    items: Iterable[tuple[str, str, Any]] = ()
    if isinstance(value, dict):
        items = ((f"{path}.{name}" if path else name, name, inner) for name, inner in value.items())
    elif isinstance(value, list):
        name = path.rpartition(".")[2].partition("[")[0]
        items = ((f"{path}[{i}]", name, inner) for i, inner in enumerate(value))
    for inner_path, name, inner in items:
        yield inner_path, name, inner
        if name != "label2id":  # its keys are class names
            yield from _fields(inner, inner_path)


def _product(shape: Iterable[int]) -> int:
    product = 1
    for size in shape:
        product *= size
    return product


def _shown(value: Any) -> str:
    return quoted(value) if isinstance(value, str | int | float) else json.dumps(value)[:60]
