"""Merge LoRA files into the weights of a cascade."""

from collections.abc import Sequence
from pathlib import Path

from imagen import limits
from imagen.cascade.cascade import Cascade
from imagen.cascade.storage import MANIFEST, check_output_folder, read_manifest, resolve_folder
from imagen.errors import UserError, check_number
from imagen.lora import applied


def merge_lora(
    cascade: str | Path, adapters: Sequence[tuple[Path, float, int | None]], out: str | Path
) -> dict[str, int]:
    """Write `cascade` with LoRA files merged into its weights to `out`; return each file's name and its stage.

    adapters: (file, weight, resolution of the stage that it adapts; None: the first that it fits).
    Raises UserError if a file is damaged or fits no stage, and if `out` would destroy anything else.
    """
    folder, out = resolve_folder(cascade), Path(out)
    if (out / MANIFEST).is_file() and out.resolve() == folder.resolve():
        raise UserError(f"{out} is the cascade itself; choose another folder for the merged one")
    for path, weight, _ in adapters:
        check_number(f"the weight of LoRA {path}", weight, **limits.LORA_WEIGHT)
    resolutions = [record.config.resolution for record in read_manifest(folder).stages]
    check_output_folder(out, [], resolutions)
    whole = Cascade.load(folder)
    placed: dict[str, int] = {}
    for number, (path, weight, resolution) in enumerate(adapters):
        name = whole.load_lora(path, name=f"merged {number}", resolution=resolution)
        stage = next(stage for stage in whole.stages if name in stage.adapters)
        with applied(stage.unet, [(stage.adapters[name], weight)]):
            merged = {key: value.clone() for key, value in stage.unet.state_dict().items()}
        stage.unet.load_state_dict(merged)
        entry = {"file": path.name, "sha256": stage.adapters[name].adapter.sha256, "weight": weight}
        stage.info = {**stage.info, "merged": [*stage.info.get("merged", []), entry]}
        placed[str(path)] = stage.config.resolution
    whole.save(out)
    return placed
