"""Training runs beside the reference run: loss by noise, conditional gap, and what was right on held-out prompts."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from imagen.distribution import missing
from imagen.errors import UserError
from imagen.evaluate.curve import CURVE, read_curve
from imagen.files import read_json, read_json_lines, replacing, write_json
from imagen.weights import packaged_path

Row = dict[str, Any]
CURVES = "curves.json"  # in the package: preset -> {"metrics": [...], "evaluation": [...]}
LOSSES = ("loss_t0", "loss_t1", "loss_t2", "loss_t3")
KEPT = ("step", "images", "loss", *LOSSES, "conditional_gap", "validation_loss")
ENDINGS = ("", ".png", ".svg", ".pdf")  # of the drawing; PNG without one
POINTS = 120  # of a reference curve: enough for the eye, few enough for a repository
COLOURS = ("#2a7de1", "#d1495b", "#2e933c", "#8f5bbd", "#e08e0b")


def compare(runs: Sequence[str | Path], out: str | Path) -> list[Row]:
    """Draw the curves of `runs` over those of the reference run of the same preset, as a PNG or SVG at `out`.

    Returns a row for each run: its preset, and under "mine" and "reference" the last losses and gap at or before the
    same number of pictures. UserError if a folder is no run, presets differ, or matplotlib is missing.
    """
    if not runs:
        raise UserError("no runs to compare")
    if Path(out).suffix.lower() not in ENDINGS:
        raise UserError(f"{out}: curves are drawn as {', '.join(ENDINGS[1:])}; choose one of these endings")
    loaded = [_read(Path(run)) for run in runs]
    presets = {preset for preset, _, _ in loaded}
    if len(presets) > 1:
        raise UserError(f"these are runs of {', '.join(sorted(presets))}; compare runs of one preset")
    preset = presets.pop()
    reference = reference_curves().get(preset, {"metrics": [], "evaluation": []})
    series = [(str(run), metrics, curve) for run, (_, metrics, curve) in zip(runs, loaded, strict=True)]
    draw(preset, [("reference", reference["metrics"], reference["evaluation"]), *series], out)
    rows = []
    for name, metrics, _ in series:
        images = metrics[-1]["images"] if metrics else 0
        mine, other = _until(metrics, images), _until(reference["metrics"], images)
        rows.append({"run": name, "preset": preset, "images": images, "mine": mine, "reference": other})
    return rows


def reference_curves() -> dict[str, dict[str, list[Row]]]:
    """The curves of the reference run, by preset; none in a copy of the package without them."""
    path = packaged_path(CURVES)
    return read_json(path) if path.is_file() else {}


def write_reference_curves(runs: Sequence[str | Path], path: str | Path) -> None:
    """Write the curves of `runs`, thinned, as the file that `reference_curves` reads."""
    curves = {}
    for run in runs:
        preset, metrics, curve = _read(Path(run))
        every = max(1, -(-len(metrics) // POINTS))
        kept = [row for i, row in enumerate(metrics) if (i + 1) % every == 0 or "conditional_gap" in row]
        curves[preset] = {
            "metrics": [_short({k: row[k] for k in KEPT if k in row}) for row in kept],
            "evaluation": curve,
        }
    write_json(path, curves)


def draw(preset: str, series: Sequence[tuple[str, Sequence[Row], Sequence[Row]]], out: str | Path) -> None:
    """series: (name, rows of metrics.jsonl, rows of evaluation.jsonl), the reference first."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise missing("drawing needs the package matplotlib", "demo") from None
    panels: list[tuple[str, str, Any]] = [
        *(
            (f"loss, quarter {i} of t" + (" (almost clean)", "", "", " (almost noise)")[i], "log", name)
            for i, name in enumerate(LOSSES)
        ),
        ("conditional gap", "linear", "conditional_gap"),
        ("held-out prompts: object right", "linear", ("single", "object")),
        ("held-out prompts: colour right", "linear", ("single", "colour")),
        ("held-out numbers: right", "linear", ("count", "number")),
        ("held-out pairs: both right, and where", "linear", ("relation", "relation")),
        ("KID on the recogniser's features", "linear", "kid"),
    ]
    figure = Figure(figsize=(17, 6.4), layout="constrained")
    figure.suptitle(preset)
    for axis, (title, scale, key) in zip(figure.subplots(2, 5).flat, panels, strict=True):
        for number, (name, metrics, curve) in enumerate(series):
            rows = metrics if isinstance(key, str) and key != "kid" else _best(curve)
            points = [(row["images"] / 1000, value) for row in rows if (value := _value(row, key)) is not None]
            colour = "#999999" if number == 0 else COLOURS[(number - 1) % len(COLOURS)]
            if points:
                marker = "o" if len(points) < 30 else None
                axis.plot(*zip(*points, strict=True), color=colour, label=name, marker=marker, markersize=3)
        axis.set(title=title, xlabel="pictures seen, thousands", yscale=scale)
        axis.set_xlim(left=0)
        if isinstance(key, tuple):  # a share
            axis.set_ylim(0, 1.03)
        axis.grid(alpha=0.3)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    if handles:
        figure.legend(handles, labels, loc="outside lower center", ncols=4)
    with replacing(out) as temporary:
        figure.savefig(temporary, format=Path(out).suffix.lstrip(".").lower() or "png", dpi=90)


def _read(run: Path) -> tuple[str, list[Row], list[Row]]:
    if not (run / "config.json").is_file() or not (run / "metrics.jsonl").is_file():
        raise UserError(f"{run} is not a training run: it holds no config.json and metrics.jsonl")
    config, metrics = read_json(run / "config.json"), read_json_lines(run / "metrics.jsonl", ("step", "images"))
    if not isinstance(config, dict):
        raise UserError(f"{run / 'config.json'} is damaged: an object was expected")
    for number, row in enumerate(metrics, 1):
        values = {key: row[key] for key in KEPT if row.get(key) is not None or key in ("step", "images")}
        if wrong := [key for key, value in values.items() if not isinstance(value, int | float)]:
            raise UserError(f"{run / 'metrics.jsonl'} is damaged: {wrong[0]} of row {number} is no number")
    curve = read_curve(run)
    for number, row in enumerate(curve, 1):
        single = row.get("single")
        shown = [row.get("images"), row.get("kid"), single.get("object") if isinstance(single, dict) else None]
        if not all(isinstance(value, int | float) for value in shown):
            raise UserError(f"{run / CURVE} is damaged: row {number} lacks images, kid or the share of right objects")
    return str(config.get("name")), metrics, curve


def _best(curve: Sequence[Row]) -> list[Row]:
    """Of the rows of one step, the one with the most objects right; among such, the one of the least KID."""
    best: dict[int, Row] = {}
    for row in sorted(curve, key=lambda row: (row["single"]["object"], -row["kid"])):
        best[row["images"]] = row  # a better one comes later
    return [best[images] for images in sorted(best)]


def _value(row: Row, key: Any) -> float | None:
    if isinstance(key, str):
        return row.get(key)
    return row.get(key[0], {}).get(key[1])


def _until(metrics: Sequence[Row], images: int) -> Row:
    """The last value of each number at or before so many pictures."""
    found: Row = {}
    for row in metrics:
        if row["images"] <= images:
            found |= {key: row[key] for key in KEPT if row.get(key) is not None}
    return found


def _short(row: Row) -> Row:
    return {key: float(f"{value:.5g}") if isinstance(value, float) else value for key, value in row.items()}
