"""Read and write the CASCADE folder: `cascade.json` and safetensors files of stages and unconditional embedding.

`cascade.json` names all other files, whose names contain their hashes. So a folder is replaced atomically, and a reader
never mixes old and new files: the new files are written beside the old ones, `cascade.json` is replaced by a rename,
which commits the change, and stale files are removed.
"""

import hashlib
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from imagen import limits
from imagen.cascade.hub import download, is_name
from imagen.errors import UserError, check_number
from imagen.files import read_json, replacing, write_json
from imagen.jsonconfig import from_json, to_json
from imagen.stage.config import SamplingConfig, StageConfig
from imagen.tensors import save_tensors
from imagen.text.config import TextConfig
from imagen.version import __version__
from imagen.weights import packaged

MANIFEST = "cascade.json"
FORMAT = 1
# File names that `store_tensors` and `copy_file` create; "new" and "tmp" are leftovers of killed processes.
_OURS = re.compile(r"\.?((?:stage|fast)-\d+|text)-(new|[0-9a-f]{16}\.safetensors)(\.[\da-f-]+\.tmp)?")


@dataclass(frozen=True, kw_only=True)
class FastRecord:
    """How a stage is sampled with `fast`: in few steps, with a distilled adapter or without one."""

    sampling: SamplingConfig
    lora: str | None = None  # file name
    sha256: str | None = None  # of that file


@dataclass(frozen=True, kw_only=True)
class StageRecord:
    """A stage in `cascade.json`."""

    config: StageConfig
    weights: str  # file name
    sha256: str
    info: dict[str, Any] = field(default_factory=dict)  # origin of the weights: steps, data, preset
    fast: FastRecord | None = None  # None: `fast` changes nothing here


@dataclass(frozen=True, kw_only=True)
class TextRecord:
    """The text encoder in `cascade.json`."""

    config: TextConfig
    unconditional: str  # file name
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """`cascade.json`."""

    format: int = FORMAT
    imagen: str = __version__
    text: TextRecord | None = None
    stages: tuple[StageRecord, ...]


def resolve_folder(path: str | Path) -> Path:
    """Return the cascade folder at `path`: itself, the `export` of a run, a packaged one, or one on the hub."""
    path = Path(path)
    if not path.exists() and is_name(path):
        path = download(path.as_posix())
    for folder in (path, path / "export"):
        if (folder / MANIFEST).is_file():
            return folder
    if (folder_of_name := packaged(str(path))) is not None:
        return folder_of_name
    if not path.exists():
        raise UserError(f"{path} does not exist; expected a cascade or a training run")
    if (path / "config.json").is_file():
        raise UserError(f"{path} is a training run that has not exported yet; wait for its first export")
    raise UserError(f"{path} is not a cascade: it contains neither {MANIFEST} nor export/{MANIFEST}")


def read_manifest(folder: Path) -> Manifest:
    """Read and check `cascade.json`. Raises UserError for another format, unknown fields, or stages that do not fit."""
    where = folder / MANIFEST
    value = read_json(where)
    version = value.get("format") if isinstance(value, dict) else None
    if version != FORMAT:
        raise UserError(f"{where}: field 'format' is {version!r}, but this version of imagen reads {FORMAT}")
    try:
        manifest = from_json(Manifest, value, str(where))
        check_number("the number of stages", len(manifest.stages), most=limits.STAGES)
        if manifest.text is not None:
            manifest.text.config.check()
    except UserError as error:  # a config's own check does not name the file
        raise error if str(where) in str(error) else UserError(f"{where}: {error}") from None
    for name in file_names(manifest):
        if name != Path(name).name:
            raise UserError(f"{where}: {name!r} must be the name of a file in the same folder, without a path")
    text = manifest.text.config if manifest.text is not None else None
    check_stages([stage.config for stage in manifest.stages], text=text, where=str(where))
    for stage in manifest.stages:
        if stage.fast is not None:
            stage.fast.sampling.check(f"{where}: stage {stage.config.resolution}: fast.sampling")
            if (stage.fast.lora is None) != (stage.fast.sha256 is None):
                raise UserError(f"{where}: stage {stage.config.resolution}: fast.lora and fast.sha256 go together")
    return manifest


def file_names(manifest: Manifest) -> list[str]:
    """Return the names of all files that `cascade.json` names."""
    names = [record.weights for record in manifest.stages]
    names += [each.fast.lora for each in manifest.stages if each.fast is not None and each.fast.lora is not None]
    return names if manifest.text is None else [*names, manifest.text.unconditional]


def check_file(folder: Path, name: str, sha256: str) -> Path:
    """Return the path of a file of the cascade. Raises UserError if it is missing or has another hash."""
    _check_hash(folder / name, sha256)
    return folder / name


def read_tensors(folder: Path, name: str, sha256: str) -> dict[str, Tensor]:
    """Verify the hash of a safetensors file, then load it."""
    path = folder / name
    _check_hash(path, sha256)
    try:
        return load_file(path)
    except SafetensorError as error:
        raise _no_tensors(path, error) from None


def _no_tensors(path: Path, error: SafetensorError) -> UserError:
    return UserError(f"{path} is not a safetensors file: {error}")


def read_unconditional(folder: Path, text: TextRecord) -> Tensor:
    """Return the unconditional embedding, float32 [L0, D]."""
    tensors = read_tensors(folder, text.unconditional, text.sha256)
    path, width = folder / text.unconditional, text.config.width
    if set(tensors) != {"unconditional"}:
        raise UserError(f"{path}: expected one tensor 'unconditional', found {', '.join(sorted(tensors)) or 'none'}")
    shape = tuple(tensors["unconditional"].shape)
    if len(shape) != 2 or shape[0] < 1 or shape[1] != width:
        raise UserError(
            f"{path}: tensor 'unconditional' has shape {shape}, text.width in {MANIFEST} needs (n, {width})"
        )
    return tensors["unconditional"].float()


def write_cascade(
    folder: Path,
    *,
    text: TextConfig | None,
    unconditional: Tensor | None,
    stages: Sequence[tuple[StageConfig, Mapping[str, Tensor], Mapping[str, Any]]],
    fast: Mapping[int, tuple[SamplingConfig, Mapping[str, Tensor]]] | None = None,
) -> Manifest:
    """Write or atomically replace a cascade.

    stages: (config, weights, info) of each stage. fast: settings and adapter of `fast`, by the stage's resolution; an
    empty adapter is none.
    """
    check_stages([config for config, _, _ in stages], text=text, where=str(folder))
    record = None
    if text is not None:
        if unconditional is None:
            raise ValueError("a cascade with text needs the unconditional embedding")
        name, sha256 = store_tensors(folder, "text", {"unconditional": unconditional.float()})
        record = TextRecord(config=text, unconditional=name, sha256=sha256)
    records = []
    for config, weights, info in stages:
        name, sha256 = store_tensors(folder, f"stage-{config.resolution}", weights)
        quick = None
        if config.resolution in (fast or {}):
            sampling, tensors = (fast or {})[config.resolution]
            file = store_tensors(folder, f"fast-{config.resolution}", tensors) if tensors else (None, None)
            quick = FastRecord(sampling=sampling, lora=file[0], sha256=file[1])
        records.append(StageRecord(config=config, weights=name, sha256=sha256, info=dict(info), fast=quick))
    manifest = Manifest(text=record, stages=tuple(records))
    write_manifest(folder, manifest)
    return manifest


def export_stage(
    folder: str | Path,
    *,
    stage: StageConfig,
    text: TextConfig | None,
    weights: Mapping[str, Tensor],
    unconditional: Tensor | None,
    info: Mapping[str, Any],
) -> None:
    """Write or atomically replace the one-stage cascade of a training run.

    weights: the U-Net's state dict, usually its EMA. unconditional: the unconditional embedding, float [L0, D]; None
    without text. info: origin of the weights, as JSON.
    Raises UserError if `folder` contains a cascade of other stages, or the disk is full.
    """
    folder = Path(folder)
    if (folder / MANIFEST).is_file():
        found = [record.config.resolution for record in read_manifest(folder).stages]
        if found != [stage.resolution]:
            raise UserError(f"{folder} contains a cascade of stages {found}; export stage {stage.resolution} elsewhere")
    write_cascade(folder, text=text, unconditional=unconditional, stages=[(stage, weights, info)])


def check_output_folder(out: Path, sources: Sequence[Path], resolutions: Sequence[int]) -> None:
    """Raise UserError if writing a cascade of these stages to `out` would destroy anything else."""
    if (out / "config.json").exists():
        raise UserError(f"{out} is a training run; choose another folder for the cascade")
    if (out / MANIFEST).is_file():
        found = [record.config.resolution for record in read_manifest(out).stages]
        if found != resolutions and all(out.resolve() != source.resolve() for source in sources):
            raise UserError(
                f"{out} contains a cascade of stages {found}, not {list(resolutions)}; "
                "choose another folder or delete it"
            )
    elif out.is_dir() and any(not _OURS.fullmatch(path.name) and path.name[0] != "." for path in out.iterdir()):
        raise UserError(f"{out} is not empty and not a cascade; choose another folder")


def check_stages(
    stages: Sequence[StageConfig], *, text: TextConfig | None, where: str, sources: Sequence[str] | None = None
) -> None:
    """Raise UserError unless each stage upsamples the output of the one before. The first may be any stage."""
    if not stages:
        raise UserError(f"{where}: no stages")
    names = [f"{where}: stage {stage.resolution}" for stage in stages]
    if sources is not None:
        names = [f"{source} (stage {stage.resolution})" for source, stage in zip(sources, stages, strict=True)]
    for name, stage in zip(names, stages, strict=True):
        if (stage.low_resolution is not None) != stage.unet.low_res:
            raise UserError(
                f"{name}: low_resolution is {stage.low_resolution} but unet.low_res is {stage.unet.low_res}"
            )
        if stage.low_resolution is not None and not 0 < stage.low_resolution < stage.resolution:
            raise UserError(f"{name}: low_resolution {stage.low_resolution} must be below the resolution")
        width = stage.unet.text_width
        if width is not None and text is None:
            raise UserError(f"{name}: its U-Net is conditioned on text but there is no text encoder (field 'text')")
        if width is not None and text is not None and width != text.width:
            raise UserError(f"{name}: unet.text_width is {width} but {text.encoder} gives {text.width} (text.width)")
        stage.sampling.check(name)
    for before, stage, name in zip(stages, stages[1:], names[1:], strict=False):
        if stage.low_resolution is None:
            raise UserError(f"{name} is a base stage; only the first stage can be one")
        if stage.low_resolution != before.resolution:
            raise UserError(
                f"{name}: upsamples {stage.low_resolution}-pixel images, but the stage before it outputs "
                f"{before.resolution}"
            )


def store_tensors(folder: Path, stem: str, tensors: Mapping[str, Tensor]) -> tuple[str, str]:
    """Write `stem-HASH.safetensors`; return its name and sha256."""
    new = folder / f"{stem}-new"
    with replacing(new) as temporary:
        save_tensors(tensors, temporary)
    sha256 = _hash(new)
    name = f"{stem}-{sha256[:16]}.safetensors"
    new.replace(folder / name)
    return name, sha256


def copy_file(source: Path, folder: Path, stem: str, sha256: str) -> str:
    """Copy a file of another cascade, under the name that `store_tensors` would give it; return the name.

    Raises UserError unless the file has the given hash and is a safetensors file.
    """
    name = f"{stem}-{sha256[:16]}.safetensors"
    _check_hash(source, sha256)
    try:
        with safe_open(source, "pt"):  # reads the header
            pass
    except SafetensorError as error:
        raise _no_tensors(source, error) from None
    if not (folder / name).exists():
        with replacing(folder / name) as temporary:
            shutil.copyfile(source, temporary)
    return name


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Commit the files that `manifest` names as the cascade at `folder`, and remove stale files."""
    write_json(folder / MANIFEST, to_json(manifest))
    named = file_names(manifest)
    for path in folder.iterdir():
        if _OURS.fullmatch(path.name) and path.name not in named:
            path.unlink(missing_ok=True)


def _check_hash(path: Path, sha256: str) -> None:
    if not path.is_file():
        raise UserError(f"{path} is missing; {MANIFEST} names it: copy the folder again, or export again")
    found = _hash(path)
    if found != sha256:
        raise UserError(
            f"{path} is damaged or was replaced: its sha256 is {found[:12]}..., but {MANIFEST} gives {sha256[:12]}..."
        )


def _hash(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 22):
            digest.update(chunk)
    return digest.hexdigest()
