"""DeepFloyd IF to a cascade: as diffusers publishes it, or in its first format (`imagen.convert.original`).

A pipeline folder holds `unet/`, `scheduler/`, `image_noising_scheduler/` (super-resolution), `text_encoder/` and
`tokenizer/`. What a stage is comes from its own JSON; only what no file says (steps, guidance and the level of the
conditioning noise, which are arguments of diffusers' pipelines) is IF's recommendation.
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

MAX_TOKENS = 77  # what IF was trained with
ENCODER = "google/t5-v1_1-xxl"  # where the folders bring none
SCALE = 4  # of IF's super-resolution stages
BASE = {"steps": 100, "guidance": 7.0}
SUPER_RESOLUTION = {"steps": 50, "guidance": 4.0, "low_res_noise": 0.25}

WEIGHTS = "diffusion_pytorch_model"
MOST_NAME = 200  # characters of the name that a folder gives itself


def convert_deepfloyd(
    paths: Sequence[str | Path],
    out: str | Path,
    *,
    encoder: str | None = None,
    cleaning: Cleaning = "lower",
    device: torch.device | str = "cpu",
) -> list[StageConfig]:
    """Write the cascade `out` from pipeline folders, one a stage, base first (or super-resolution stages alone).

    encoder: a Hugging Face name or a local folder. Default: the first of the folders that holds one, else T5-XXL by
    name. It is referred to, not copied; it runs once here, on `device`, for the embedding of "".
    cleaning: what is done to prompts.

    Raises UserError, naming file and field, for what is not IF's structure, for a tensor too many or too few, for
    weights that are not safetensors (a pickle may run code), and if `out` holds anything else.
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
    for folder in folders:  # the weights' licence asks to go with every copy of them
        copy_licences(folder, Path(out))
    return stages


def read_stage(folder: Path, before: int | None = None) -> StageConfig:
    """What the stage in a pipeline folder is. `before`: the resolution of the stage that it enlarges, if known."""
    (where, config), (scheduler, settings) = _described(folder)
    unet = read_unet_config(config, str(where))
    resolution = config.get("sample_size")
    if type(resolution) is not int or resolution < 1:
        raise UserError(f"{where}: sample_size is {resolution!r}; it must be the side of the stage's pictures")
    low_resolution, low_res_schedule = None, read_schedule(settings, str(scheduler))
    if unet.low_res:
        low_resolution = before or resolution // SCALE
        if where.name != original.CONFIG:  # which knows one schedule alone
            scheduler = folder / "image_noising_scheduler" / "scheduler_config.json"
            low_res_schedule = read_schedule(_object(scheduler), str(scheduler))
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
    """The U-Net's tensors under our names, float32 (a half-precision variant is read where there is no other)."""
    where, config = _described(folder)[0]
    tensors: dict[str, Tensor] = {}
    if where.name == original.CONFIG:
        tensors = original.read_tensors(folder, config)
    else:
        for file in _weight_files(where.parent):
            try:
                open_regular(file).close()  # safetensors would wait for a pipe
                tensors |= load_file(file)
            except (SafetensorError, OSError) as error:
                raise UserError(f"{file} cannot be read as safetensors: {error}") from None
    return {name: tensor.float() for name, tensor in to_ours(tensors, stage.unet, str(where.parent)).items()}


def text_config(encoder: str, cleaning: Cleaning = "lower") -> TextConfig:
    """IF's handling of text, with this encoder."""
    config = encoder_config(encoder, max_tokens=MAX_TOKENS)
    return replace(config, cleaning=cleaning, padding="full", unconditional="empty")


def _pipeline(path: Path) -> Path:
    """A folder with `unet/config.json`, or `config.yml`."""
    if (path / "unet" / "config.json").is_file() or (path / original.CONFIG).is_file():
        return path
    if not path.is_dir():
        raise UserError(f"{path} is no folder; expected a diffusers pipeline with unet/config.json")
    raise UserError(
        f"{path} holds neither unet/config.json nor {original.CONFIG}; expected a diffusers pipeline of DeepFloyd IF, "
        "or IF's first format"
    )


def _described(folder: Path) -> tuple[tuple[Path, Mapping[str, Any]], tuple[Path, Mapping[str, Any]]]:
    """Its U-Net and scheduler as diffusers describes them, each with the file that says so."""
    unet, scheduler = folder / "unet" / "config.json", folder / "scheduler" / "scheduler_config.json"
    if unet.is_file():  # a repository may hold both formats
        return (unet, _object(unet)), (scheduler, _object(scheduler))
    where = folder / original.CONFIG
    config = original.unet_config(original.read_params(folder), str(where))
    return (where, config), (where, original.scheduler_config(config))


def _encoder(folders: Sequence[Path]) -> str:
    with_encoder = [folder for folder in folders if (folder / "text_encoder" / "config.json").is_file()]
    return str(with_encoder[0].resolve()) if with_encoder else ENCODER


def _weight_files(unet: Path) -> list[Path]:
    """The safetensors of full precision if they are there, else those of a variant; in one file or in several."""
    for variant in ("", ".bf16", ".fp16"):
        whole, index = unet / f"{WEIGHTS}{variant}.safetensors", unet / f"{WEIGHTS}.safetensors.index{variant}.json"
        if whole.is_file():
            return [whole]
        if index.is_file():
            return [unet / name for name in check_index(_object(index), index)]
    if any(unet.glob("*.bin")):
        raise UserError(f"{unet} holds pickled weights alone (.bin), which may run code; get the .safetensors")
    raise UserError(f"{unet} holds no {WEIGHTS}.safetensors")


def _object(path: Path) -> Mapping[str, Any]:
    value = read_json(path)
    if not isinstance(value, dict):
        raise UserError(f"{path} is not an object")
    return value


def _info(folder: Path) -> dict[str, Any]:
    index = folder / "model_index.json"
    name = _object(index).get("_name_or_path") if index.is_file() else None
    return {"converted_from": name[:MOST_NAME] if isinstance(name, str) and name else folder.name}
