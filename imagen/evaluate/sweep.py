"""Evaluate a cascade with several settings, and each of its stages on true and on generated inputs."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from imagen.cascade import Cascade
from imagen.errors import UserError, suggest
from imagen.evaluate import REPORT, SWEPT
from imagen.evaluate.generated import JOB
from imagen.evaluate.run import evaluate
from imagen.files import write_json

PAIRED = ("psnr", "ssim")  # only with true inputs
Report = dict[str, Any]


def sweep(
    cascade: Cascade, data: str | Path, out: str | Path, name: str, values: Sequence[Any], **options: Any
) -> list[Report] | None:
    """Evaluate with each of `values` for the option `name` of the last stage that runs; options as for `evaluate`.

    Other stages use their own settings, unless `options` sets them. Each value has a folder below `out`, so a sweep can
    resume, also with further values, and `out`/report.json contains all rows. Raises UserError as `evaluate` does.
    """
    if name not in SWEPT:
        raise UserError(f"--sweep: {name!r} cannot vary{suggest(name, SWEPT, 'known: ' + ', '.join(SWEPT))}")
    folders = {f"{name}-{value}": value for value in values}
    _check_folder(Path(out), list(folders))
    rows = []
    for folder, value in folders.items():
        given = {**options, name: _of_last_stage(cascade, options, name, value)}
        report = evaluate(cascade, data, Path(out) / folder, **given)
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
    cases = {}
    for number, stage in enumerate(stages):
        for inputs, chosen, first in (("generated", compared, 0), ("true", list(metrics), number)):
            if not chosen or (inputs == "true" and number == 0):  # psnr and ssim alone; a base stage
                continue
            per_stage = {name: _slice(options[name], first, number) for name in SWEPT if name in options}
            changes = {**per_stage, "metrics": chosen, "inputs": inputs, "stages": number + 1}
            cases[f"{stage.config.resolution}-{inputs}"] = {**options, **changes}
    _check_folder(Path(out), list(cases))
    rows = []
    for folder, given in cases.items():
        report = evaluate(cascade, data, Path(out) / folder, **given)
        if report is not None:
            rows.append(report)
    return _write(out, {"gap": True, "rows": rows}) if rows else None


def _check_folder(out: Path, folders: Sequence[str]) -> None:
    """Raise UserError if `out` has evaluations that are not in `folders`, or files but no evaluation.

    Then its report, which is written anew, loses no row, and `evaluate` compares the options of each.
    """
    found = [path.name for path in out.iterdir()] if out.is_dir() else []
    evaluations = [name for name in found if (out / name / JOB).is_file()]
    if JOB in found:
        raise UserError(f"{out} contains another evaluation; choose another folder")
    if others := sorted(set(evaluations) - set(folders)):
        raise UserError(f"{out} contains the evaluation {others[0]}: repeat it, too, or choose another folder")
    if not evaluations and set(found) - set(folders):
        raise UserError(f"{out} is not empty and contains no evaluation; choose another folder")


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
    write_json(Path(out) / REPORT, report)
    return report["rows"]
