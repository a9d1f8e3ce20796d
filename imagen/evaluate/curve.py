"""Store the scores of a training run's checkpoints: RUN/evaluation.jsonl, one row per step and settings."""

import json
from pathlib import Path
from typing import Any

from imagen.files import read_json_lines, replacing

Row = dict[str, Any]
KEY = ("step", "guidance", "steps", "prompts", "recogniser")
CURVE = "evaluation.jsonl"  # in the folder of a training run


def append(run: Path, row: Row) -> None:
    """Add a row to the evaluation curve of a training run, or replace the row of the same step and settings."""
    others = [each for each in read_curve(run) if any(each.get(key) != row.get(key) for key in KEY)]
    rows = sorted([*others, row], key=lambda each: (each["step"], each["guidance"]))
    with replacing(run / CURVE) as temporary:
        temporary.write_text("".join(json.dumps(each) + "\n" for each in rows), encoding="utf-8")


def read_curve(run: Path) -> list[Row]:
    """Return the rows that `append` added. Raises UserError if the file is damaged."""
    path = run / CURVE
    return read_json_lines(path, ("step", "guidance", "steps")) if path.exists() else []
