"""Plot training runs against the reference run: loss by noise level, conditional gap, and held-out prompts."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from imagen.errors import UserError
from imagen.evaluate.curve import CURVE, read_curve
from imagen.evaluate.metrics.table import METRICS
from imagen.evaluate.plots import legend, load_figure, save_figure
from imagen.files import read_json, read_json_lines, write_json
from imagen.weights import packaged_path

Row = dict[str, Any]
CURVES = "curves.json"  # in the package: preset -> {"metrics": [...], "evaluation": [...]}
LOSSES = ("loss_t0", "loss_t1", "loss_t2", "loss_t3")
MEASURED = tuple(
    name for metric in METRICS.values() for name in metric.names if name != "kid"
)  # by `train.evaluate_every`
FIELDS = ("step", "images", "loss", *LOSSES, "conditional_gap", "validation_loss", *MEASURED)
SUFFIXES = ("", ".png", ".svg", ".pdf")  # of the plot file; without one it is a PNG
POINTS = 120  # per reference curve, to limit the size of the package
COLOURS = ("#2a7de1", "#d1495b", "#2e933c", "#8f5bbd", "#e08e0b")


def compare(runs: Sequence[str | Path], out: str | Path) -> list[Row]:
    """Plot the curves of `runs` over those of the reference run of the same preset, as PNG, SVG or PDF at `out`.

    Returns one row per run: its preset, and under "mine" and "reference" the last losses and conditional gap up to the
    same number of training images. Raises UserError if a folder is not a run, if presets differ, or if matplotlib is
    missing.
    """
    if not runs:
        raise UserError("no runs to compare")
    if Path(out).suffix.lower() not in SUFFIXES:
        raise UserError(f"{out}: curves are plotted as {', '.join(SUFFIXES[1:])}; choose one of these suffixes")
    loaded = [_read(Path(run)) for run in runs]
    presets = {preset for preset, _, _ in loaded}
    if len(presets) > 1:
        raise UserError(f"these are runs of {', '.join(sorted(presets))}; compare runs of one preset")
    preset = presets.pop()
    reference = reference_curves().get(preset, {"metrics": [], "evaluation": []})
    series = [(str(run), metrics, curve) for run, (_, metrics, curve) in zip(runs, loaded, strict=True)]
    plot(preset, [("reference", reference["metrics"], reference["evaluation"]), *series], out)
    rows = []
    for name, metrics, _ in series:
        images = metrics[-1]["images"] if metrics else 0
        mine, other = _last_values(metrics, images), _last_values(reference["metrics"], images)
        rows.append({"run": name, "preset": preset, "images": images, "mine": mine, "reference": other})
    return rows


def reference_curves() -> dict[str, dict[str, list[Row]]]:
    """Return the curves of the reference run by preset; empty if the installation lacks them."""
    path = packaged_path(CURVES)
    return read_json(path) if path.is_file() else {}


def write_reference_curves(runs: Sequence[str | Path], path: str | Path) -> None:
    """Write the curves of `runs`, subsampled, as the file that `reference_curves` reads.

    Runs of one preset are joined into one curve: each began with the weights of the one before (`--init`), so its steps
    and images are counted from there.
    """
    curves: dict[str, dict[str, list[Row]]] = {}
    for run in runs:
        preset, metrics, evaluation = _read(Path(run))
        joined = curves.setdefault(preset, {"metrics": [], "evaluation": []})
        before = joined["metrics"][-1] if joined["metrics"] else {"step": 0, "images": 0}
        start = {name: before[name] for name in ("step", "images")}
        joined["metrics"] += _later(metrics, start)
        joined["evaluation"] += _later(evaluation, start)
    for curve in curves.values():
        every = max(1, -(-len(curve["metrics"]) // POINTS))
        rows = [row for i, row in enumerate(curve["metrics"]) if (i + 1) % every == 0 or "conditional_gap" in row]
        curve["metrics"] = [_rounded({k: row[k] for k in FIELDS if k in row}) for row in rows]
    write_json(path, curves)


def _later(rows: Sequence[Row], start: Row) -> list[Row]:
    """Return rows of a run with its steps and images counted from `start`."""
    return [row | {name: row[name] + start[name] for name in start} for row in rows]


def plot(preset: str, series: Sequence[tuple[str, Sequence[Row], Sequence[Row]]], out: str | Path) -> None:
    """Plot training curves to a file.

    series: one (name, rows of metrics.jsonl, rows of evaluation.jsonl) per run, the reference first.
    Raises UserError if matplotlib is missing or the file cannot be written.
    """
    panels: list[tuple[str, str, Any]] = [
        *(
            (f"loss, quarter {i} of t" + (" (almost clean)", "", "", " (almost noise)")[i], "log", name)
            for i, name in enumerate(LOSSES)
        ),
        ("conditional gap", "linear", "conditional_gap"),
        ("held-out prompts: correct object", "linear", ("single", "object")),
        ("held-out prompts: correct colour", "linear", ("single", "colour")),
        ("held-out people: all correct", "linear", ("people", "object")),
        ("held-out counts: correct", "linear", ("count", "number")),
        ("held-out pairs: both objects and positions correct", "linear", ("relation", "relation")),
        ("KID on the recogniser's features", "linear", "kid"),
        *((f"{name}, during training", "linear", name) for name in MEASURED),
    ]
    # Only metrics that were measured: held-out prompts, for example, are those of emoji models.
    panels = [panel for panel in panels if any(_points(each, panel[2]) for each in series)] or panels[:1]
    columns = -(-len(panels) // 2)
    figure = load_figure()(figsize=(3.4 * max(columns, 2), 6.4), layout="constrained")
    figure.suptitle(preset, parse_math=False)
    axes = list(figure.subplots(2, columns, squeeze=False).flat)
    for spare in axes[len(panels) :]:
        spare.remove()
    for axis, (title, scale, key) in zip(axes[: len(panels)], panels, strict=True):
        for number in range(len(series)):
            points = _points(series[number], key)
            colour = "#999999" if number == 0 else COLOURS[(number - 1) % len(COLOURS)]
            if points:
                marker = "o" if len(points) < 30 else None
                axis.plot(*zip(*points, strict=True), color=colour, label=str(number), marker=marker, markersize=3)
        axis.set(title=title, xlabel="training images, thousands", yscale=scale)
        axis.set_xlim(left=0)
        if isinstance(key, tuple):  # an accuracy
            axis.set_ylim(0, 1.03)
        axis.grid(alpha=0.3)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    if handles:
        legend(figure, handles, [series[int(number)][0] for number in labels], columns=4)
    save_figure(figure, out, Path(out).suffix.lstrip(".").lower() or "png", dpi=90)


def _read(run: Path) -> tuple[str, list[Row], list[Row]]:
    """Return the preset of a run, and the rows of its metrics and of its evaluation."""
    if not (run / "config.json").is_file() or not (run / "metrics.jsonl").is_file():
        raise UserError(f"{run} is not a training run: it has no config.json and metrics.jsonl")
    config, metrics = read_json(run / "config.json"), read_json_lines(run / "metrics.jsonl", ("step", "images"))
    if not isinstance(config, dict):
        raise UserError(f"{run / 'config.json'} is damaged: it is not a JSON object")
    for number, row in enumerate(metrics, 1):
        values = {key: row[key] for key in FIELDS if row.get(key) is not None or key in ("step", "images")}
        if wrong := [key for key, value in values.items() if not isinstance(value, int | float)]:
            raise UserError(f"{run / 'metrics.jsonl'} is damaged: {wrong[0]} of row {number} is not a number")
    curve = read_curve(run)
    for number, row in enumerate(curve, 1):
        single = row.get("single")
        required = [row.get("images"), row.get("kid"), single.get("object") if isinstance(single, dict) else None]
        if not all(isinstance(value, int | float) for value in required):
            raise UserError(f"{run / CURVE} is damaged: row {number} lacks images, kid or the accuracy of objects")
    return str(config.get("name")), metrics, curve


def _best(curve: Sequence[Row]) -> list[Row]:
    """Return the best row of each step, by the accuracy of objects and then by KID."""
    best: dict[int, Row] = {}
    for row in sorted(curve, key=lambda row: (row["single"]["object"], -row["kid"])):
        best[row["images"]] = row  # better rows come last
    return [best[images] for images in sorted(best)]


def _points(series: tuple[str, Sequence[Row], Sequence[Row]], key: Any) -> list[tuple[float, float]]:
    """Return (thousands of training images, value) of the rows of a run that have a value at `key`."""
    _, metrics, curve = series
    rows = metrics if isinstance(key, str) and key != "kid" else _best(curve)
    return [(row["images"] / 1000, value) for row in rows if (value := _value(row, key)) is not None]


def _value(row: Row, key: Any) -> float | None:
    """Return the value at a key, or at a pair of nested keys."""
    if isinstance(key, str):
        return row.get(key)
    nested = row.get(key[0])
    value = nested.get(key[1]) if isinstance(nested, dict) else None
    return value if isinstance(value, int | float) else None


def _last_values(metrics: Sequence[Row], images: int) -> Row:
    """Return the last value of each field up to a number of training images."""
    found: Row = {}
    for row in metrics:
        if row["images"] <= images:
            found |= {key: row[key] for key in FIELDS if row.get(key) is not None}
    return found


def _rounded(row: Row) -> Row:
    return {key: float(f"{value:.5g}") if isinstance(value, float) else value for key, value in row.items()}
