"""Convert between diffusers' `scheduler_config.json` and our schedule, objective and thresholding."""

from collections.abc import Mapping
from typing import Any, get_args

from imagen.diffusion.objective import ObjectiveConfig, Prediction
from imagen.diffusion.schedule import STEPS, DiscreteSteps, ScheduleConfig
from imagen.errors import UserError, check_number, quoted
from imagen.stage.config import SamplingConfig, StageConfig

_FIXED = {"fixed_small": 0.0, "fixed_large": 1.0}  # gamma of fixed variances
_PREDICTIONS: dict[str, Prediction] = {"epsilon": "eps", "sample": "x0", "v_prediction": "v"}


def read_schedule(config: Mapping[str, Any], where: str) -> ScheduleConfig:
    """Return the schedule of a `scheduler_config.json`. Raises UserError, naming the field, unless it is IF's."""
    fixed = {
        "beta_schedule": "squaredcos_cap_v2",
        "num_train_timesteps": STEPS,
        "rescale_betas_zero_snr": False,
        "steps_offset": 0,
        "trained_betas": None,
    }
    for field, value in fixed.items():
        if config.get(field, value if field != "beta_schedule" else None) != value:
            raise UserError(f"{where}: {field} is {config.get(field)!r}; only {value!r} is known")
    spacing = config.get("timestep_spacing", "leading")
    if spacing not in get_args(DiscreteSteps):
        raise UserError(f"{where}: timestep_spacing is {spacing!r}; known are {', '.join(get_args(DiscreteSteps))}")
    return ScheduleConfig(kind="discrete_cosine", discrete_steps=spacing)


def read_objective(config: Mapping[str, Any], where: str) -> ObjectiveConfig:
    """Return the prediction type, and whether the variance is trained, as an ObjectiveConfig."""
    prediction = config.get("prediction_type", "epsilon")
    if prediction not in list(_PREDICTIONS):  # a list, because the value may be unhashable
        raise UserError(f"{where}: prediction_type is {prediction!r}; known are {', '.join(_PREDICTIONS)}")
    if config.get("variance_type", "fixed_small") in list(_FIXED):
        return ObjectiveConfig(prediction=_PREDICTIONS[prediction], variance_weight=0.0)
    return ObjectiveConfig(prediction=_PREDICTIONS[prediction])


def read_sampling(config: Mapping[str, Any], learned_variance: bool, where: str, **defaults: Any) -> SamplingConfig:
    """Return a SamplingConfig with the scheduler's thresholding and variance. defaults: its other fields.

    Scripts that fine-tune IF do not train its variance, and store a fixed one beside a U-Net that still predicts it.
    """
    variance = config.get("variance_type", "fixed_small")
    known = [*_FIXED, *(["learned_range"] if learned_variance else [])]
    if variance not in known:
        raise UserError(f"{where}: variance_type is {variance!r}; this U-Net needs {' or '.join(known)}")
    fixed: dict[str, Any] = {"variance": "fixed", "gamma": _FIXED[variance]} if variance in _FIXED else {}
    if config.get("thresholding", False):
        threshold: dict[str, Any] = {
            "threshold": "dynamic",
            "percentile": _number(config, "dynamic_thresholding_ratio", 0.995, where),
            "max_scale": _number(config, "sample_max_value", 1.0, where),
        }
    elif config.get("clip_sample", True):
        if config.get("clip_sample_range", 1.0) != 1.0:
            raise UserError(f"{where}: clip_sample_range is {config['clip_sample_range']}; only 1.0 is known")
        threshold = {"threshold": "static"}
    else:
        threshold = {"threshold": "none"}
    sampling = SamplingConfig(sampler="ddpm", **fixed, **threshold, **defaults)
    sampling.check(where)
    return sampling


def _number(config: Mapping[str, Any], field: str, default: float, where: str) -> float:
    value = config.get(field, default)
    if type(value) not in (int, float):
        raise UserError(f"{where}: {field} is {quoted(value)}; it must be a number")
    check_number(f"{where}: {field}", value)
    return float(value)


def write_scheduler(stage: StageConfig, where: str) -> dict[str, Any]:
    """Return `scheduler_config.json` of a stage. Raises UserError, with `where`, if DDPMScheduler cannot express it."""
    sampling = stage.sampling
    if sampling.threshold == "dynamic" and sampling.max_scale is None:
        raise UserError(f"{where}: diffusers cannot express it: its dynamic threshold has no limit; set max_scale")
    if sampling.variance == "fixed" and sampling.gamma not in _FIXED.values():
        raise UserError(f"{where}: diffusers cannot express it: a fixed variance of gamma {sampling.gamma}, not 0 or 1")
    fixed = {gamma: name for name, gamma in _FIXED.items()}
    predictions = {ours: theirs for theirs, ours in _PREDICTIONS.items()}
    return {
        **write_noising(stage.schedule, where),
        "clip_sample": sampling.threshold == "static",
        "dynamic_thresholding_ratio": sampling.percentile,
        "prediction_type": predictions[stage.objective.prediction],
        "sample_max_value": 1.0 if sampling.max_scale is None else sampling.max_scale,
        "thresholding": sampling.threshold == "dynamic",
        "variance_type": fixed[sampling.gamma] if sampling.variance == "fixed" else "learned_range",
    }


def write_noising(schedule: ScheduleConfig, where: str) -> dict[str, Any]:
    """Return `scheduler_config.json` of only a schedule, for conditioning augmentation."""
    if schedule.kind != "discrete_cosine":
        raise UserError(f"{where}: diffusers cannot express it: a {schedule.kind} schedule; only discrete_cosine can")
    return {
        "_class_name": "DDPMScheduler",
        "beta_schedule": "squaredcos_cap_v2",
        "num_train_timesteps": STEPS,
        "timestep_spacing": schedule.discrete_steps,
    }
