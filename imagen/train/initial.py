"""Initial weights of a run: the stage of a cascade that it starts from."""

import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from imagen.cascade.storage import (
    Manifest,
    StageRecord,
    read_manifest,
    read_tensors,
    read_unconditional,
    resolve_folder,
)
from imagen.errors import UserError
from imagen.files import copy_licences, read_json, replacing, write_json
from imagen.tensors import save_tensors
from imagen.text.config import TextConfig
from imagen.text.vocabulary import Vocabulary

VOCABULARY = "vocabulary.json"  # in RUN/base


@dataclass(frozen=True, kw_only=True)
class InitConfig:
    """Name the stage of a cascade whose weights a run starts from."""

    source: str  # a cascade folder, a training run, a name such as `emoji` or one on the hub; then #RESOLUTION
    resolution: int | None = None  # of the stage; None: not looked up yet
    sha256: str | None = None  # of the weights file
    partial: bool = False  # load the weights that fit; the others keep their random initial values
    converted_from: str | None = None  # origin of converted weights: its licence also covers what is trained from them


@dataclass(frozen=True)
class Source:
    """A stage of a cascade on disk."""

    name: str  # as given
    folder: Path
    manifest: Manifest
    record: StageRecord


def find_source(name: str) -> Source:
    """Find the stage that `name` means: CASCADE of one stage, or CASCADE#RESOLUTION.

    Raises UserError if there is no such cascade or stage, or if the cascade has several stages and none is named.
    """
    path, mark, stage = name.rpartition("#")
    if not mark or not stage.isdecimal():
        path, stage = name, ""
    folder = resolve_folder(path)
    manifest = read_manifest(folder)
    found = {str(record.config.resolution): record for record in manifest.stages}
    if not stage and len(found) == 1:
        (stage,) = found
    if stage not in found:
        known = ", ".join(found)
        problem = f"has no stage {stage}" if stage else "has several stages"
        raise UserError(
            f"--init {name}: {path} {problem}; name one of {known}, as in --init {path}#{next(iter(found))}"
        )
    return Source(name, folder, manifest, found[stage])


def read_initial(init: InitConfig, kept: Path | None = None) -> dict[str, Tensor]:
    """Return the weights that `init` names.

    kept: a copy in the run folder (`keep_base`), read instead of the cascade if it exists.
    Raises UserError if the cascade is missing or has other weights than `init` says.
    """
    if kept is not None and kept.is_file() and init.sha256 is not None:
        return read_tensors(kept.parent, kept.name, init.sha256)
    source = find_source(init.source)
    if init.sha256 not in (None, source.record.sha256):
        raise UserError(
            f"{init.source} has other weights than the run was started with (sha256 {source.record.sha256[:12]}..., "
            f"not {(init.sha256 or '')[:12]}...); restore them, or begin a new run"
        )
    return read_tensors(source.folder, source.record.weights, source.record.sha256)


def base_path(run: Path, init: InitConfig) -> Path:
    """Return the path of the copy of the initial weights in a run of adapters."""
    return run / "base" / f"{(init.sha256 or '')[:16]}.safetensors"


def keep_licences(run: Path, init: InitConfig) -> None:
    """Copy the LICENSE* files of the cascade into the run folder: every export contains them."""
    copy_licences(find_source(init.source).folder, run)


UNCONDITIONAL = "unconditional"


def forget_kept(run: Path) -> None:
    """Delete what an earlier start in this folder kept, one that ended before its first checkpoint."""
    for name in (f"{UNCONDITIONAL}.safetensors", VOCABULARY):
        (run / "base" / name).unlink(missing_ok=True)


def keep_unconditional(run: Path, init: InitConfig, text: TextConfig | None) -> None:
    """Copy the cascade's unconditional embedding into the run folder if it is that of `text`.

    Exports use it. The one of training is rounded to bfloat16, as stored embeddings are: with that, the stage would not
    go with the cascade's other stages.
    """
    source = find_source(init.source)
    record = source.manifest.text
    if record is not None and record.config == text:
        with replacing(run / "base" / f"{UNCONDITIONAL}.safetensors") as temporary:
            save_tensors({UNCONDITIONAL: read_unconditional(source.folder, record)}, temporary)


def read_kept_unconditional(run: Path) -> Tensor | None:
    """Return the embedding that `keep_unconditional` stored, float32 [L0, D]; None without one."""
    path = run / "base" / f"{UNCONDITIONAL}.safetensors"
    return load_file(path)[UNCONDITIONAL] if path.is_file() else None


def keep_vocabulary(run: Path, init: InitConfig) -> None:
    """Store the vocabulary of the stage in the run folder, if it has one: the weights still know it after training."""
    vocabulary = Vocabulary.from_json(find_source(init.source).record.info.get("vocabulary"))
    if vocabulary is not None:
        write_json(run / "base" / VOCABULARY, vocabulary.to_json())


def read_kept_vocabulary(run: Path) -> Vocabulary | None:
    """Return the vocabulary that `keep_vocabulary` stored; None without one."""
    path = run / "base" / VOCABULARY
    return Vocabulary.from_json(read_json(path)) if path.is_file() else None


def keep_base(run: Path, init: InitConfig) -> Path:
    """Put the initial weights into the run folder, so that it does not depend on the cascade; return their path.

    A hard link where the file system allows it, which takes no space, else a copy. Checkpoints of adapters do not
    contain the frozen weights.
    """
    path = base_path(run, init)
    if not path.is_file():
        source = find_source(init.source)
        if source.record.sha256 == init.sha256:
            file = (source.folder / source.record.weights).resolve()
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                os.link(file, path)
            except OSError:  # another file system, or one without links
                with replacing(path) as temporary:
                    shutil.copyfile(file, temporary)
    return path


@torch.no_grad()
def load_initial(
    unet: nn.Module, tensors: Mapping[str, Tensor], init: InitConfig, report: Callable[[str], None]
) -> None:
    """Copy the weights of `init` into a new U-Net, in place.

    Raises UserError, naming the first tensor that does not fit, unless `init.partial`: then every parameter without a
    tensor of its name and shape keeps its value, and is reported.
    """
    state = unet.state_dict()
    new = [name for name, value in state.items() if name not in tensors or tensors[name].shape != value.shape]
    unused = [name for name in tensors if name not in state]
    if not init.partial and (new or unused):
        name = (new or unused)[0]
        found = f"shape {list(tensors[name].shape)}" if name in tensors else "no such tensor"
        needed = f"needs {list(state[name].shape)}" if name in state else "has no such parameter"
        raise UserError(
            f"--init {init.source}: {name}: {found}, the U-Net {needed}; load what fits with --init-partial"
        )
    if len(new) == len(state):
        raise UserError(f"--init {init.source}: none of its weights fit the U-Net; leave --init out")
    for name, value in state.items():
        if name not in new:
            value.copy_(tensors[name])
    report(f"--init {init.source}: {len(state) - len(new)} of {len(state)} tensors loaded, sha256 {init.sha256}")
    for title, names in (("new, with random values", new), ("not used", unused)):
        if names:
            report(f"--init-partial: {len(names)} {title}: {', '.join(names)}")
