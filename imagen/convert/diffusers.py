"""A cascade to pipeline folders that diffusers' IFPipeline and IFSuperResolutionPipeline load and run.

The text encoder is referred to, never copied: it is given to `from_pretrained`, as the model card shows.
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

UNFINISHED = ".unfinished.json"  # in the folder of the stages, while they are written: of which cascade


def convert_diffusers(cascade: str | Path, out: str | Path) -> list[Path]:
    """Write one pipeline folder a stage, `out/stage-RESOLUTION`; return them.

    Raises UserError, before anything is written, with the reason why a stage cannot be expressed; and if a folder
    is there already, and not because this cascade's conversion was interrupted.
    """
    folder, out = resolve_folder(cascade), Path(out)
    manifest = read_manifest(folder)
    folders = [out / f"stage-{record.config.resolution}" for record in manifest.stages]
    mark, wanted = out / UNFINISHED, {"stages": [record.sha256 for record in manifest.stages]}
    goes_on = mark.exists() and read_json(mark) == wanted
    files = []
    for record, target in zip(manifest.stages, folders, strict=True):
        if not goes_on and target.exists() and any(target.iterdir()):
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
    """Every JSON file of a stage's pipeline folder; UserError, naming `where`, if it cannot be one."""
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
    enlarges = record.config.low_resolution is not None
    index: dict[str, Any] = {
        "_class_name": "IFSuperResolutionPipeline" if enlarges else "IFPipeline",
        # IF's licence wants its filters: diffusers warns where weights that came from it run without.
        "requires_safety_checker": "converted_from" in record.info,
        "scheduler": ["diffusers", "DDPMScheduler"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        **{part: [None, None] for part in ("feature_extractor", "safety_checker", "text_encoder", "tokenizer")},
        "watermarker": [None, None],
    }
    if enlarges:
        index["image_noising_scheduler"] = ["diffusers", "DDPMScheduler"]
    return index


def _inexpressible(stage: StageConfig) -> list[str]:
    checks = [
        (stage.detail_std is None, "detail_std is set: it diffuses the detail of pictures"),
        (stage.low_resolution is None or stage.low_res_filter == "bilinear", "low_res_filter is not 'bilinear'"),
    ]
    return [reason for fits, reason in checks if not fits]


def _text_inexpressible(text: TextConfig | None) -> list[str]:
    """Why the IF pipelines, whose handling of text is fixed, cannot give this text to a U-Net."""
    if text is None:
        return ["the cascade reads no text"]
    checks = [
        (text.padding == "full", "text.padding is 'trim': the IF pipelines show padding to the U-Net"),
        (text.max_tokens == MAX_TOKENS, f"text.max_tokens is {text.max_tokens}; the IF pipelines take {MAX_TOKENS}"),
        (text.unconditional == "empty", "text.unconditional is 'zeros'; the IF pipelines take the empty caption"),
        (text.cleaning != "none", "text.cleaning is 'none'; the IF pipelines put prompts in lower case"),
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
        f"One stage of a cascade, {stage.low_resolution or 'text'} → {stage.resolution}, for diffusers. It reads text",
        f"through {encoder}, which is not included.",
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
