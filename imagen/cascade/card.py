"""Write the model card of a cascade on the Hugging Face hub."""

from pathlib import Path
from typing import Any

from imagen.cascade.hub import MARK, front_matter, is_name
from imagen.cascade.storage import Manifest
from imagen.text.vocabulary import Vocabulary


def cascade_card(manifest: Manifest, name: str) -> str:
    """Return the model card of a cascade, in Markdown."""
    rows = [
        f"| {stage.config.low_resolution or 'text'} → {stage.config.resolution} | {stage.config.objective.prediction} "
        f"| {stage.config.sampling.sampler}, {stage.config.sampling.steps} steps | {_origin(stage.info)} |"
        for stage in manifest.stages
    ]
    text = "none" if manifest.text is None else f"`{Path(manifest.text.config.encoder).name}`, frozen; not included"
    if manifest.text is not None and is_name(manifest.text.config.encoder):
        text = f"`{manifest.text.config.encoder}`, frozen; loaded by name"
    lines = [
        *front_matter("imagen", any("converted_from" in stage.info for stage in manifest.stages)),
        MARK,
        "",
        f"# {name.rpartition('/')[2]}",
        "",
        "A cascade of pixel diffusion models after [Imagen](https://arxiv.org/abs/2205.11487).",
        "",
        "```python",
        "import imagen",
        "",
        f'imagen.load("{name}").sample(["a red apple"])[0].save("apple.png")',
        "```",
        "",
        "| stage | predicts | sampled by default | weights |",
        "|---|---|---|---|",
        *rows,
        "",
        f"Text encoder: {text}. Everything else is in `cascade.json`.",
        *_names(Vocabulary.from_json(manifest.stages[0].info.get("vocabulary"))),
    ]
    return "\n".join(lines) + "\n"


def _names(vocabulary: Vocabulary | None) -> list[str]:
    if vocabulary is None or not vocabulary.names:
        return []
    names = ", ".join(vocabulary.names)
    return ["", f"<details><summary>Trained on {len(vocabulary.names):,} names</summary>", "", names, "", "</details>"]


def _origin(info: Any) -> str:
    if "converted_from" in info:
        return f"converted from {info['converted_from']}, under its licence"
    known = [f"{key} {info[key]}" for key in ("preset", "step") if key in info]
    return ", ".join(known) or "-"
