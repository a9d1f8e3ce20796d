"""Plot an evaluation: metrics over a setting, two metrics against each other, and stages side by side."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from imagen.distribution import missing
from imagen.files import check_replaceable, replacing

Row = dict[str, Any]
FORMATS = {"png": b"\x89PNG", "svg": b"<svg", "pdf": b"%PDF"}  # with bytes that such a file begins with
COLOURS = ("#2a7de1", "#d1495b", "#2e933c", "#8f5bbd", "#e08e0b", "#5b6c7d")


def over_setting(rows: Sequence[Row], name: str) -> Any:
    """Return a figure with a panel for each metric over the setting `name`, with 95 % intervals."""
    metrics = list(rows[0]["metrics"])
    figure, panels = _figure(len(metrics))
    values = [row[name] for row in rows]
    for panel, metric, colour in zip(panels, metrics, _colours(len(metrics)), strict=True):
        found = [row["metrics"][metric] for row in rows]
        at = range(len(values)) if any(isinstance(value, str) for value in values) else values
        panel.plot(at, [each["value"] for each in found], "o-", color=colour)
        panel.fill_between(
            at, [each["low"] for each in found], [each["high"] for each in found], color=colour, alpha=0.2
        )
        if any(isinstance(value, str) for value in values):
            panel.set_xticks(list(at), values)
        panel.set(title=metric, xlabel=name.replace("_", " "))
        panel.grid(alpha=0.3)
    return figure


def trade_off(rows: Sequence[Row], name: str, x: str, y: str) -> Any:
    """Return a figure of metric `y` over `x`, a point for each value of the setting: the paper's Pareto curve."""
    figure, (panel,) = _figure(1)
    xs, ys = ([row["metrics"][metric]["value"] for row in rows] for metric in (x, y))
    panel.plot(xs, ys, "o-", color=COLOURS[0])
    for row, left, up in zip(rows, xs, ys, strict=True):
        panel.annotate(str(row[name]), (left, up), textcoords="offset points", xytext=(6, 4), fontsize=8)
    panel.set(xlabel=x, ylabel=y, title=f"{y} against {x} over {name.replace('_', ' ')}")
    panel.grid(alpha=0.3)
    return figure


def by_stage(rows: Sequence[Row]) -> Any:
    """Return a figure with a panel for each metric: bars of every stage, on generated and on true inputs."""
    metrics = list(dict.fromkeys(name for row in rows for name in row["metrics"]))
    figure, panels = _figure(len(metrics))
    for panel, metric in zip(panels, metrics, strict=True):
        shown = [row for row in rows if metric in row["metrics"]]
        found = [row["metrics"][metric] for row in shown]
        heights = [each["value"] for each in found]
        errors = [
            [height - each["low"] for height, each in zip(heights, found, strict=True)],
            [each["high"] - height for height, each in zip(heights, found, strict=True)],
        ]
        colours = [COLOURS[0] if row["inputs"] == "generated" else COLOURS[2] for row in shown]
        panel.bar(range(len(shown)), heights, yerr=errors, color=colours, capsize=3)
        panel.set_xticks(range(len(shown)), [f"{row['resolution']}\n{row['inputs']}" for row in shown], fontsize=8)
        panel.set(title=metric)
        panel.grid(axis="y", alpha=0.3)
    return figure


def side_by_side(rows: Sequence[Row]) -> Any:
    """Return a figure with a panel for each metric: a bar per row, labelled with its "name"."""
    metrics = list(dict.fromkeys(name for row in rows for name in row["metrics"]))
    figure, panels = _figure(len(metrics))
    colours = dict(zip((row["name"] for row in rows), _colours(len(rows)), strict=True))
    for panel, metric in zip(panels, metrics, strict=True):
        for at, row in enumerate(rows):
            if found := row["metrics"].get(metric):
                error = [[max(found["value"] - found["low"], 0)], [max(found["high"] - found["value"], 0)]]
                panel.bar(at, found["value"], yerr=error, color=colours[row["name"]], capsize=3)
        panel.set_title(metric, parse_math=False)
        panel.set(xticks=[])
        panel.grid(axis="y", alpha=0.3)
    legend(figure, [panels[0].bar(0, 0, color=colour) for colour in colours.values()], list(colours), columns=2)
    return figure


def legend(figure: Any, handles: Sequence[Any], names: Sequence[str], columns: int) -> None:
    """Add a legend of names as they are: matplotlib would leave out _names, and read $names$ as formulas."""
    drawn = figure.legend(handles, [str(i) for i in range(len(names))], loc="outside lower center", ncols=columns)
    for text, name in zip(drawn.get_texts(), names, strict=True):
        text.set(text=name, parse_math=False)


def load_figure() -> Any:
    """Return matplotlib's class Figure. Raises UserError if matplotlib is not installed."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise missing("plotting needs the package matplotlib", "demo") from None
    return Figure


def save_figure(figure: Any, out: str | Path, kind: str, *, dpi: int) -> None:
    """Write a figure as a file of this kind, atomically. Raises UserError if `out` is a file of another kind."""
    if kind in FORMATS:
        check_replaceable(out, FORMATS[kind], f"a {kind.upper()} file")
    with replacing(out) as temporary:
        figure.savefig(temporary, format=kind, dpi=dpi)


def _figure(panels: int) -> tuple[Any, list[Any]]:
    columns = min(panels, 3)
    rows = -(-panels // columns)
    figure = load_figure()(figsize=(4 * columns, 3 * rows), layout="constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for spare in axes[panels:]:
        spare.remove()
    return figure, axes[:panels]


def _colours(count: int) -> list[str]:
    return [COLOURS[number % len(COLOURS)] for number in range(count)]
