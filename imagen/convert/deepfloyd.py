"""Convert DeepFloyd IF to a cascade, from diffusers' format or its original one (`imagen.convert.original`).

A pipeline folder contains `unet/`, `scheduler/`, `image_noising_scheduler/` (super-resolution), `text_encoder/` and
`tokenizer/`. The configuration of a stage is read from its JSON files. Steps, guidance scale and the level of
conditioning augmentation are in no file, because they are arguments of diffusers' pipelines; IF's recommendations are
used.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from imagen.cascade.storage import check_output_folder, check_stages, write_cascade
from imagen.convert import original
from imagen.convert.scheduler import read_objective, read_sampling, read_schedule
from imagen.convert.structure import read_unet_config
from imagen.errors import UserError
from imagen.files import copy_licences, open_regular, read_json
from imagen.models.diffusers_names import to_ours
from imagen.stage.config import StageConfig
from imagen.text.config import Cleaning, TextConfig
from imagen.text.embeddings import unconditional_embedding
from imagen.text.encoder import encoder_config, load_text_encoder
from imagen.text.files import check_index

MAX_TOKENS = 77  # as in IF's training
ENCODER = "google/t5-v1_1-xxl"  # if the folders contain none
SCALE = 4  # of IF's super-resolution stages
BASE = {"steps": 100, "guidance": 7.0}
SUPER_RESOLUTION = {"steps": 50, "guidance": 4.0, "low_res_noise": 0.25}

WEIGHTS = "diffusion_pytorch_model"
MOST_NAME = 200  # characters of the model's name in `model_index.json`


def convert_deepfloyd(
    paths: Sequence[str | Path],
    out: str | Path,
    *,
    encoder: str | None = None,
    cleaning: Cleaning = "lower",
    device: torch.device | str = "cpu",
) -> list[StageConfig]:
    """Write the cascade `out` from pipeline folders, one per stage: a base first, or super-resolution stages alone.

    encoder: a Hugging Face name or a local folder. None: the encoder in the first folder that contains one, else
        T5-XXL by name. The cascade refers to the encoder and does not include it. The encoder runs once, on `device`,
        for the embedding of "".
    cleaning: of prompts.

    Raises UserError, naming file and field, if the structure is not IF's, if tensors are missing or unknown, if the
    weights are not safetensors, since a pickle may run code, or if `out` contains anything else.
    """
    if not paths:
        raise UserError("nothing to convert: name the pipeline folders, base first")
    folders = [_pipeline(Path(path)) for path in paths]
    stages: list[StageConfig] = []
    for folder in folders:
        stages.append(read_stage(folder, stages[-1].resolution if stages else None))
    check_output_folder(Path(out), [], [stage.resolution for stage in stages])
    text = text_config(encoder or _encoder(folders), cleaning)
    check_stages(stages, text=text, where=str(out), sources=[str(folder) for folder in folders])
    null_LD = unconditional_embedding(text, lambda: load_text_encoder(text, device).encode([""])[0])
    write_cascade(
        Path(out),
        text=text,
        unconditional=null_LD,
        stages=[
            (stage, read_weights(folder, stage), _info(folder)) for folder, stage in zip(folders, stages, strict=True)
        ],
    )
    for folder in folders:  # the licence must accompany every copy of the weights
        copy_licences(folder, Path(out))
    return stages


def read_stage(folder: Path, before: int | None = None) -> StageConfig:
    """Return the configuration of the stage in a pipeline folder. before: the previous stage's resolution, if known."""
    (where, config), (scheduler, settings) = _described(folder)
    unet = read_unet_config(config, str(where))
    resolution = config.get("sample_size")
    if type(resolution) is not int or resolution < 1:
        raise UserError(f"{where}: sample_size is {resolution!r}; it must be the side of the stage's images, in pixels")
    low_resolution, low_res_schedule = None, read_schedule(settings, str(scheduler))
    if unet.low_res:
        low_resolution = before or resolution // SCALE
        if where.name != original.CONFIG:  # the original format has one schedule for both
            noising = folder / "image_noising_scheduler" / "scheduler_config.json"
            low_res_schedule = read_schedule(_object(noising), str(noising))
    stage = StageConfig(
        resolution=resolution,
        low_resolution=low_resolution,
        unet=unet,
        schedule=read_schedule(settings, str(scheduler)),
        objective=read_objective(settings, str(scheduler)),
        low_res_schedule=low_res_schedule,
        low_res_filter="bilinear",
        sampling=read_sampling(
            settings, unet.learned_variance, str(scheduler), **SUPER_RESOLUTION if unet.low_res else BASE
        ),
    )
    stage.check(str(folder))
    return stage


def read_weights(folder: Path, stage: StageConfig) -> dict[str, Tensor]:
    """Return the U-Net's tensors under our names, float32. Reads a low-precision variant only if there is no other."""
    where, config = _described(folder)[0]
    tensors: dict[str, Tensor] = {}
    if where.name == original.CONFIG:
        tensors = original.read_tensors(folder, config)
    else:
        for file in _weight_files(where.parent):
            try:
                open_regular(file).close()  # safetensors would block on a pipe
                tensors |= load_file(file)
            except (SafetensorError, OSError) as error:
                raise UserError(f"{file} cannot be read as safetensors: {error}") from None
    return {name: tensor.float() for name, tensor in to_ours(tensors, stage.unet, str(where.parent)).items()}


def text_config(encoder: str, cleaning: Cleaning = "lower") -> TextConfig:
    """Return the text configuration of IF with this encoder."""
    config = encoder_config(encoder, max_tokens=MAX_TOKENS)
    return replace(config, cleaning=cleaning, padding="full", unconditional="empty")


def _pipeline(path: Path) -> Path:
    """Check that `path` contains `unet/config.json` or `config.yml`; return it. Raises UserError otherwise."""
    if (path / "unet" / "config.json").is_file() or (path / original.CONFIG).is_file():
        return path
    if not path.is_dir():
        raise UserError(f"{path} is not a folder; expected a diffusers pipeline with unet/config.json")
    raise UserError(
        f"{path} contains neither unet/config.json nor {original.CONFIG}; "
        "expected a diffusers pipeline of DeepFloyd IF, or IF's original format"
    )


def _described(folder: Path) -> tuple[tuple[Path, Mapping[str, Any]], tuple[Path, Mapping[str, Any]]]:
    """Return (file, config) of the U-Net and of the scheduler, as diffusers describes them."""
    unet, scheduler = folder / "unet" / "config.json", folder / "scheduler" / "scheduler_config.json"
    if unet.is_file():  # a repository may contain both formats
        return (unet, _object(unet)), (scheduler, _object(scheduler))
    where = folder / original.CONFIG
    config = original.unet_config(original.read_params(folder), str(where))
    return (where, config), (where, original.scheduler_config(config))


def _encoder(folders: Sequence[Path]) -> str:
    with_encoder = [folder for folder in folders if (folder / "text_encoder" / "config.json").is_file()]
    return str(with_encoder[0].resolve()) if with_encoder else ENCODER


def _weight_files(unet: Path) -> list[Path]:
    """Return the safetensors files of full precision, else of a low-precision variant; one file or several."""
    for variant in ("", ".bf16", ".fp16"):
        whole, index = unet / f"{WEIGHTS}{variant}.safetensors", unet / f"{WEIGHTS}.safetensors.index{variant}.json"
        if whole.is_file():
            return [whole]
        if index.is_file():
            return [unet / name for name in check_index(_object(index), index)]
    if any(unet.glob("*.bin")):
        raise UserError(f"{unet} contains only pickled weights (.bin), which may run code; download the .safetensors")
    raise UserError(f"{unet} contains no {WEIGHTS}.safetensors")


def _object(path: Path) -> Mapping[str, Any]:
    value = read_json(path)
    if not isinstance(value, dict):
        raise UserError(f"{path} is not a JSON object")
    return value


def _info(folder: Path) -> dict[str, Any]:
    index = folder / "model_index.json"
    name = _object(index).get("_name_or_path") if index.is_file() else None
    return {"converted_from": name[:MOST_NAME] if isinstance(name, str) and name else folder.name}
