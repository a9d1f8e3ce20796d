"""Convert a cascade to pipeline folders for diffusers' IFPipeline and IFSuperResolutionPipeline.

The text encoder is not included. It is an argument of `from_pretrained`, as the model card shows.
"""

from pathlib import Path
from typing import Any

from imagen.cascade.hub import CARD, front_matter
from imagen.cascade.storage import Manifest, StageRecord, read_manifest, read_tensors, resolve_folder
from imagen.convert.deepfloyd import MAX_TOKENS, WEIGHTS
from imagen.convert.scheduler import write_noising, write_scheduler
from imagen.convert.structure import write_unet_config
from imagen.errors import UserError
from imagen.files import copy_licences, read_json, replacing, write_json, write_text
from imagen.models.diffusers_names import to_theirs
from imagen.stage.config import StageConfig
from imagen.tensors import save_tensors
from imagen.text.config import TextConfig

UNFINISHED = ".unfinished.json"  # marks an unfinished conversion, and identifies the cascade


def convert_diffusers(cascade: str | Path, out: str | Path) -> list[Path]:
    """Write one pipeline folder per stage, `out/stage-RESOLUTION`; return the folders.

    Raises UserError, before anything is written, if diffusers cannot express a stage, or if a folder exists and is not
    from an interrupted conversion of the same cascade.
    """
    folder, out = resolve_folder(cascade), Path(out)
    manifest = read_manifest(folder)
    folders = [out / f"stage-{record.config.resolution}" for record in manifest.stages]
    mark, wanted = out / UNFINISHED, {"stages": [record.sha256 for record in manifest.stages]}
    resumes = mark.exists() and read_json(mark) == wanted
    files = []
    for record, target in zip(manifest.stages, folders, strict=True):
        if not resumes and target.exists() and any(target.iterdir()):
            raise UserError(f"{target} is not empty; choose another folder")
        files.append(_json_files(manifest, record, f"{folder}: stage {record.config.resolution}"))
    write_json(mark, wanted)
    for record, target, contents in zip(manifest.stages, folders, files, strict=True):
        tensors = to_theirs(read_tensors(folder, record.weights, record.sha256))
        with replacing(target / "unet" / f"{WEIGHTS}.safetensors") as temporary:
            save_tensors(tensors, temporary, {"format": "pt"})
        for name, content in contents.items():
            write_json(target / name, content)
        write_text(target / CARD, _card(manifest, record))
        copy_licences(folder, target)
    mark.unlink()
    return folders


def _json_files(manifest: Manifest, record: StageRecord, where: str) -> dict[str, Any]:
    """Return all JSON files of a stage's pipeline folder. Raises UserError if diffusers cannot express the stage."""
    stage = record.config
    text = None if manifest.text is None else manifest.text.config
    for reason in (*_text_inexpressible(text), *_inexpressible(stage)):
        raise UserError(f"{where}: diffusers cannot express it: {reason}")
    files = {
        "unet/config.json": write_unet_config(stage.unet, stage.resolution, where),
        "scheduler/scheduler_config.json": write_scheduler(stage, where),
    }
    if stage.low_resolution is not None:
        files["image_noising_scheduler/scheduler_config.json"] = write_noising(stage.low_res_schedule, where)
    files["model_index.json"] = _index(record)
    return files


def _index(record: StageRecord) -> dict[str, Any]:
    super_resolution = record.config.low_resolution is not None
    index: dict[str, Any] = {
        "_class_name": "IFSuperResolutionPipeline" if super_resolution else "IFPipeline",
        # IF's licence requires its filters: diffusers warns if converted weights run without them.
        "requires_safety_checker": "converted_from" in record.info,
        "scheduler": ["diffusers", "DDPMScheduler"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        **{part: [None, None] for part in ("feature_extractor", "safety_checker", "text_encoder", "tokenizer")},
        "watermarker": [None, None],
    }
    if super_resolution:
        index["image_noising_scheduler"] = ["diffusers", "DDPMScheduler"]
    return index


def _inexpressible(stage: StageConfig) -> list[str]:
    checks = [
        (stage.detail_std is None, "detail_std is set: it generates the detail of images"),
        (stage.low_resolution is None or stage.low_res_filter == "bilinear", "low_res_filter is not 'bilinear'"),
    ]
    return [reason for fits, reason in checks if not fits]


def _text_inexpressible(text: TextConfig | None) -> list[str]:
    """Return the reasons why the IF pipelines, with their fixed text settings, do not support this configuration."""
    if text is None:
        return ["the cascade is not conditioned on text"]
    checks = [
        (text.padding == "full", "text.padding is 'trim': in the IF pipelines the U-Net attends to padding"),
        (text.max_tokens == MAX_TOKENS, f"text.max_tokens is {text.max_tokens}; the IF pipelines take {MAX_TOKENS}"),
        (text.unconditional == "empty", "text.unconditional is 'zeros'; the IF pipelines take the empty caption"),
        (text.cleaning != "none", "text.cleaning is 'none'; the IF pipelines convert prompts to lower case"),
    ]
    return [reason for fits, reason in checks if not fits]


def _card(manifest: Manifest, record: StageRecord) -> str:
    stage, text = record.config, manifest.text
    assert text is not None
    pipeline, given = ("IFSuperResolutionPipeline", "image=image, ") if stage.low_resolution else ("IFPipeline", "")
    noise = f"noise_level={int(stage.sampling.low_res_noise * 1000)}, " if stage.low_resolution else ""
    here = Path(text.config.encoder)
    encoder = here.name if here.is_absolute() else text.config.encoder
    inside = [f', subfolder="{part}"' if (here / part).is_dir() else "" for part in ("text_encoder", "tokenizer")]
    lines = [
        *front_matter("diffusers", "converted_from" in record.info),
        f"# Stage {stage.resolution}",
        "",
        f"One stage of a cascade, {stage.low_resolution or 'text'} → {stage.resolution}, for diffusers. Its text",
        f"encoder is {encoder}, which is not included.",
        "",
        "```python",
        f"from diffusers import {pipeline}",
        "from transformers import AutoTokenizer, T5EncoderModel",
        "",
        f'encoder = "{encoder}"',
        f"pipe = {pipeline}.from_pretrained(",
        "    PATH,",
        f"    text_encoder=T5EncoderModel.from_pretrained(encoder{inside[0]}),",
        f"    tokenizer=AutoTokenizer.from_pretrained(encoder{inside[1]}),",
        ")",
        f'pipe("a red apple", {given}{noise}num_inference_steps={stage.sampling.steps}, '
        f"guidance_scale={stage.sampling.guidance}, clean_caption={text.config.cleaning == 'caption'})",
        "```",
    ]
    return "\n".join(lines) + "\n"
