"""Summarise a demo in summary.json."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from imagen.cascade import Cascade
from imagen.emoji.demo.budget import Budget
from imagen.emoji.demo.drawing import SampledImages, has_recogniser, scores
from imagen.files import read_json


def summarise(out: Path, cascade: Cascade, sampled: SampledImages, budget: Budget) -> dict[str, Any]:
    """Return the results after this call, with those of all calls so far under "history"."""
    scored = scores(sampled)
    rows: list[dict[str, Any]] = [
        {
            "prompt": prompt.prompt,
            "object": score.object,
            "wanted": prompt.colour,
            "found": found,
            "right": score.all,
        }
        for prompt, (score, found) in zip(sampled.prompts, scored, strict=True)
    ]
    base, sr = metrics(out / "base"), metrics(out / "sr")
    state = {
        "machine": budget.machine,
        "objects": budget.objects,
        "images": cascade.stages[0].info["images"],
        "sr_images": cascade.stages[1].info["images"] if len(cascade.stages) > 1 else 0,
        "colour_accuracy": _share([row["wanted"] == row["found"] for row in rows]),
        "object_accuracy": _share([row["object"] for row in rows]) if has_recogniser() else None,
        "loss": _last(base, "loss"),
        "sr_loss": _last(sr, "loss"),
        "images_per_s": float(np.median([row["images_per_s"] for row in base])) if base else budget.base.images_per_s,
    }
    history = read_json(out / "summary.json")["history"] if (out / "summary.json").exists() else []
    return {**state, "data": "OpenMoji, CC BY-SA 4.0", "history": [*history, state], "prompts": rows}


def metrics(run: Path) -> list[dict[str, Any]]:
    """Return the rows of a run's metrics.jsonl; empty if the run was too short to log any."""
    path = run / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def _share(values: list[bool]) -> float:
    return sum(values) / len(values)


def _last(rows: list[dict[str, Any]], key: str) -> float | None:
    return next((row[key] for row in reversed(rows) if key in row), None)
