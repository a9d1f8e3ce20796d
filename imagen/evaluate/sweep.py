"""Evaluate a cascade with several settings, and each of its stages on true and on generated inputs."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from imagen.cascade import Cascade
from imagen.errors import UserError, suggest
from imagen.evaluate import SWEPT
from imagen.evaluate.run import evaluate
from imagen.files import write_json

PAIRED = ("psnr", "ssim")  # only with true inputs
Report = dict[str, Any]


def sweep(
    cascade: Cascade, data: str | Path, out: str | Path, name: str, values: Sequence[Any], **options: Any
) -> list[Report] | None:
    """Evaluate with each of `values` for the option `name` of the last stage that runs; options as for `evaluate`.

    Other stages use their own settings, unless `options` sets them. Each value has a folder below `out`, so a sweep can
    resume, and `out`/report.json contains all rows. Raises UserError as `evaluate` does.
    """
    if name not in SWEPT:
        raise UserError(f"--sweep: {name!r} cannot vary{suggest(name, SWEPT, 'known: ' + ', '.join(SWEPT))}")
    rows = []
    for value in values:
        given = {**options, name: _of_last_stage(cascade, options, name, value)}
        report = evaluate(cascade, data, Path(out) / f"{name}-{value}", **given)
        if report is not None:
            rows.append({name: value, **report})
    return _write(out, {"sweep": name, "rows": rows}) if rows else None


def cascade_gap(cascade: Cascade, data: str | Path, out: str | Path, **options: Any) -> list[Report] | None:
    """Evaluate every stage on what the stages below it generate, and super-resolution stages on true inputs as well.

    If a stage scores much better on true inputs, the stages below it limit the result. If it scores poorly on true
    inputs, it needs more training. Options as for `evaluate`; psnr and ssim apply to true inputs only. Lists with one
    value per stage are for all stages. Raises UserError as `evaluate` does.
    """
    metrics = options.pop("metrics", ("fid", "kid"))
    compared = [name for name in metrics if name not in PAIRED]
    stages = cascade.stages[: options.pop("stages", None)]
    if not compared and len(stages) == 1:
        raise UserError(f"{' and '.join(metrics)} compare with the true inputs of super-resolution stages: none runs")
    rows = []
    for number, stage in enumerate(stages):
        resolution = stage.config.resolution
        cases = [("generated", compared, 0)] + ([("true", list(metrics), number)] if number > 0 else [])
        for inputs, chosen, first in cases:
            if not chosen:  # psnr and ssim alone
                continue
            folder = Path(out) / f"{resolution}-{inputs}"
            per_stage = {name: _slice(options[name], first, number) for name in SWEPT if name in options}
            given = {**options, **per_stage, "metrics": chosen, "inputs": inputs, "stages": number + 1}
            report = evaluate(cascade, data, folder, **given)
            if report is not None:
                rows.append(report)
    return _write(out, {"gap": True, "rows": rows}) if rows else None


def _slice(value: Any, first: int, last: int) -> Any:
    """Return the values of stages `first` to `last` of an option that has one value per stage, or one for all."""
    return value[first : last + 1] if isinstance(value, list | tuple) else value


def _of_last_stage(cascade: Cascade, options: dict[str, Any], name: str, value: Any) -> list[Any]:
    """Return the option with one value per stage that runs: `value` for the last one."""
    stages = cascade.stages[: options.get("stages")]
    others = options.get(name)
    kept = [getattr(stage.config.sampling, name) for stage in stages]
    if others is not None:
        kept = list(others) if isinstance(others, list | tuple) else [others] * len(stages)
    if options.get("inputs") == "true":
        return [value]
    return [*kept[:-1], value]


def _write(out: str | Path, report: Report) -> list[Report]:
    write_json(Path(out) / "report.json", report)
    return report["rows"]
