"""Join several cascades into one."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from imagen.cascade.storage import (
    Manifest,
    StageRecord,
    TextRecord,
    check_output_folder,
    check_stages,
    copy_file,
    read_manifest,
    read_unconditional,
    resolve_folder,
    write_manifest,
)
from imagen.errors import UserError
from imagen.files import copy_licences
from imagen.jsonconfig import to_json
from imagen.text.config import TextConfig


def assemble(paths: Sequence[str | Path], out: str | Path) -> None:
    """Join cascades, such as the one-stage exports of training runs, into one at `out`, in the given order.

    The first must be a base model, and each of the others must start at the resolution where the previous one ends. All
    cascades with text must have the same encoder and unconditional embedding. `out` must be empty, one of `paths`, or a
    cascade of the same stages. Otherwise raises UserError, naming the folder and the reason.
    """
    if not paths:
        raise UserError("nothing to assemble: name the runs or cascades, base first")
    text: TextRecord | None = None
    text_from: Path | None = None
    stages: list[tuple[Path, StageRecord]] = []
    for path in paths:
        folder = resolve_folder(path)
        manifest = read_manifest(folder)
        if text is None or text_from is None:
            text, text_from = manifest.text, folder
        elif manifest.text is not None:
            if manifest.text.config != text.config:
                raise UserError(
                    f"{folder} does not match {text_from}: {_difference(text.config, manifest.text.config)}"
                )
            if not torch.equal(read_unconditional(folder, manifest.text), read_unconditional(text_from, text)):
                raise UserError(f"{folder} does not match {text_from}: their unconditional embeddings differ")
        stages += [(folder, record) for record in manifest.stages]

    check_stages(
        [record.config for _, record in stages],
        text=None if text is None else text.config,
        where=str(out),
        sources=[str(folder) for folder, _ in stages],
    )
    first, base = stages[0][0], stages[0][1].config
    if base.low_resolution is not None:
        raise UserError(
            f"{first} cannot come first: its stage {base.resolution} upsamples {base.low_resolution}-pixel images; "
            "begin with a base stage"
        )

    out = Path(out)
    check_output_folder(out, [folder for folder, _ in stages], [record.config.resolution for _, record in stages])
    if text is not None and text_from is not None:
        name = copy_file(text_from / text.unconditional, out, "text", text.sha256)
        text = replace(text, unconditional=name)
    records = []
    for folder, record in stages:
        name = copy_file(folder / record.weights, out, f"stage-{record.config.resolution}", record.sha256)
        fast = record.fast
        if fast is not None and fast.lora is not None and fast.sha256 is not None:
            lora = copy_file(folder / fast.lora, out, f"fast-{record.config.resolution}", fast.sha256)
            fast = replace(fast, lora=lora)
        records.append(replace(record, weights=name, fast=fast))
    write_manifest(out, Manifest(text=text, stages=tuple(records)))
    for folder, _ in stages:
        copy_licences(folder, out)


def _difference(a: TextConfig, b: TextConfig) -> str:
    """Describe the first field in which two text configs differ."""
    left, right = to_json(a), to_json(b)
    key = next(key for key in left if left[key] != right[key])
    return f"text {key} is {right[key]!r}, not {left[key]!r}"
