"""Check a network on data: its loss against trivial predictors, its use of the prompt, its EMA, and channel order."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from imagen.cascade import Stage
from imagen.data.loading.batches import Batch
from imagen.data.loading.buckets import show_size
from imagen.doctor.finding import Finding, Measured, Numbers, Skip
from imagen.doctor.network import rounded, trivial, x0_errors
from imagen.doctor.subject import Subject
from imagen.stage.config import StageConfig
from imagen.train.validation import with_other_captions

LEVELS = (-6.0, -4.0, -2.0, 0.0, 2.0, 4.0)  # log-SNR: from almost noise to noise of 17 grey levels
TEXT_LEVELS = (-6.0, -4.0, -2.0, 0.0)  # where the prompt matters
COLOUR_LEVELS = (-2.0, 0.0, 2.0)
UNTRAINED = 0.95  # error at every level, relative to the best trivial predictor
ABOVE = 1.1  # error at one level, relative to it
IGNORED = 0.005  # conditional gap, relative to the error
WORSE_EMA = 1.1  # error of the EMA relative to the raw weights'
SWAPPED = 0.9  # error with red and blue exchanged, relative to the error without
OVERFITTED = 2.0  # error on held-out images, relative to training images


class NoiseLevels:
    """Compare the error at each noise level with the errors of trivial predictors."""

    name, title, slow = "loss by noise level", "loss by noise level against trivial predictors", False
    finds = ("network-untrained", "loss-above-trivial")

    def __call__(self, subject: Subject) -> Iterator[Measured]:
        for index, stage in _stages(subject):
            config, batches = stage.config, subject.batches(index)
            statistic, levels = trivial(config, batches), visible_levels(config)
            mine = {level: float(errors.mean()) for level, errors in _errors(subject, stage, batches, levels).items()}
            best: dict[float, tuple[float, str]] = {
                level: min((error, name) for name, error in statistic.errors(config, level).items()) for level in levels
            }
            ratios = {level: mine[level] / max(best[level][0], 1e-12) for level in levels}
            where = _where(stage)
            numbers: Numbers = {
                "error_at_logsnr": {f"{level:g}": float(f"{mine[level]:.3g}") for level in levels},
                "trivial_error_at_logsnr": {f"{level:g}": float(f"{best[level][0]:.3g}") for level in levels},
                "trivial_predictor": {f"{level:g}": best[level][1] for level in levels},
                "ratio_at_logsnr": {f"{level:g}": float(f"{ratios[level]:.3g}") for level in levels},
            }
            if len(batches) > 1:
                sizes = [show_size((batch.image.shape[-2], batch.image.shape[-1])) for batch in batches]
                numbers["images_per_shape"] = dict(zip(sizes, map(len, batches), strict=True))
            findings = []
            above = [level for level in levels if not ratios[level] <= ABOVE]
            lowest = min(levels, key=lambda level: ratios[level])
            if not ratios[lowest] < UNTRAINED:
                findings.append(
                    Finding(
                        name="network-untrained",
                        severity="problem",
                        where=where,
                        numbers=numbers,
                        explanation="At no noise level is the network better than a trivial predictor: at best, its "
                        f"error is {ratios[lowest]:.0%} of that of {_names(best[lowest][1])} (log-SNR {lowest:g}). Its "
                        "samples are noise or grey.",
                        remedy="Train longer; if the loss has not fallen for long, raise --optim.lr. If the network "
                        "was trained, data, schedule or prediction type are not those of its training.",
                    )
                )
            elif above:
                worst = max(above, key=lambda level: ratios[level])
                effect = (
                    "Layout and colours of samples are wrong."
                    if worst <= -2
                    else "Samples keep visible noise, or lose detail."
                )
                findings.append(
                    Finding(
                        name="loss-above-trivial",
                        severity="problem" if ratios[worst] > 1.5 or len(above) > 2 else "warning",
                        where=where,
                        numbers=numbers,
                        explanation=f"At log-SNR {', '.join(f'{level:g}' for level in above)} the network is worse "
                        f"than a trivial predictor: {ratios[worst]:.3g} times the error of {_names(best[worst][1])} at "
                        f"{worst:g}. {effect}",
                        remedy="Train longer. If it stays, weight these noise levels more (stage.objective.weighting, "
                        "train.schedule), or predict x0 or v in place of eps.",
                    )
                )
            yield Measured(where=where, numbers=numbers, findings=tuple(findings))


class Prompt:
    """Compare the error with right captions and with those of other images: the conditional gap."""

    name, title, slow = "conditional gap", "conditional gap: is the prompt used?", False
    finds = ("prompt-ignored",)

    def __call__(self, subject: Subject) -> Iterator[Measured]:
        bases = [
            pair for pair in _stages(subject) if pair[1].config.unet.text_width and not pair[1].config.low_resolution
        ]
        if not bases:
            raise Skip("no base stage reads text")
        for index, stage in bases:
            batches = subject.batches(index)
            other = [with_other_captions(batch) for batch in batches]
            pairs = [
                pair
                for mine, theirs in zip(batches, other, strict=True)
                for pair in zip(mine.captions, theirs.captions, strict=True)
            ]
            differ = torch.tensor([a != b for a, b in pairs])
            if int(differ.sum()) < 4:
                raise Skip(f"needs images with different captions; {int(differ.sum())} of {len(pairs)} differ")
            right = _mean(_errors(subject, stage, batches, TEXT_LEVELS))[differ]
            wrong = _mean(_errors(subject, stage, other, TEXT_LEVELS))[differ]
            gap = wrong - right
            if not bool(gap.isfinite().all()):
                raise Skip("the loss is not finite")
            relative = float(gap.mean() / right.mean())
            error = float(gap.std() / len(gap) ** 0.5 / right.mean())
            numbers = rounded({"gap": float(gap.mean()), "relative": relative, "standard_error": error}, 3)
            findings = []
            if not (relative > IGNORED and relative > 2 * error):
                findings.append(
                    Finding(
                        name="prompt-ignored",
                        severity="problem",
                        where=_where(stage),
                        numbers=numbers,
                        explanation=f"With the captions of other images the error rises by {relative:.2%} "
                        f"(standard error {error:.2%}): the network ignores its prompt.",
                        remedy="See findings about captions and embeddings first: alike, shuffled, equal or of another "
                        "encoder. Without any, train longer: the gap grows after the loss has fallen.",
                    )
                )
            yield Measured(where=_where(stage), numbers=numbers, findings=tuple(findings))


class EmaLoss:
    """Compare the errors of EMA and raw weights."""

    name, title, slow = "EMA", "error of the EMA against the raw weights", False
    finds = ("ema-behind",)

    def __call__(self, subject: Subject) -> Iterator[Measured]:
        run, batches = subject.training, subject.batches(0)
        stage = run.raw_stage()
        raw = float(_mean(_errors(subject, stage, batches, LEVELS)).mean())
        average = Stage(stage.config, stage.unet)
        average.unet.load_state_dict(run.weights("ema"))
        ema = float(_mean(_errors(subject, average, batches, LEVELS)).mean())
        numbers = rounded({"raw": raw, "ema": ema, "ratio": ema / max(raw, 1e-30)}, 3)
        findings = []
        if not ema <= WORSE_EMA * raw:
            findings.append(
                Finding(
                    name="ema-behind",
                    severity="problem" if ema > 1.5 * raw else "warning",
                    where=_where(average),
                    numbers=numbers,
                    explanation=f"The EMA, which is sampled and exported, has {ema / raw:.3g} times the error of the "
                    "raw weights: it still contains early weights.",
                    remedy="Train longer; or choose a shorter EMA: --train.ema_decay 0.999 (0.99 below 1,000 steps), "
                    "or one after training with train.ema_sigma_rels and `imagen export --sigma-rel`.",
                )
            )
        yield Measured(where=_where(average), numbers=numbers, findings=tuple(findings))


class ChannelOrder:
    """Compare the error on the data with the error on the data with red and blue exchanged."""

    name, title, slow = "channel order", "channel order: RGB or BGR", False
    finds = ("channels-swapped",)

    def __call__(self, subject: Subject) -> Iterator[Measured]:
        bases = [pair for pair in _stages(subject) if pair[1].config.unet.image_channels == 3]
        if not bases:
            raise Skip("the images are grey")
        for index, stage in bases[:1]:
            batches = subject.batches(index)
            plain = _mean(_errors(subject, stage, batches, COLOUR_LEVELS))
            swapped = _mean(_errors(subject, stage, [_exchanged(batch) for batch in batches], COLOUR_LEVELS))
            numbers = rounded(
                {"as_is": float(plain.mean()), "exchanged": float(swapped.mean())}
                | {"ratio": float(swapped.mean() / plain.mean())},
                3,
            )
            better, findings = float((swapped < plain).float().mean()), []
            if numbers["ratio"] < SWAPPED and better > 0.6:
                findings.append(
                    Finding(
                        name="channels-swapped",
                        severity="problem",
                        where=_where(stage),
                        numbers=numbers | {"share": round(better, 3)},
                        explanation="The network fits the data better with red and blue exchanged: "
                        f"{numbers['ratio']:.2f} times the error, lower for {better:.0%} of the images.",
                        remedy="The images of these shards or of the training data were written in BGR order "
                        "(OpenCV's). Convert them (image[..., ::-1]) and build the shards again.",
                    )
                )
            yield Measured(where=_where(stage), numbers=numbers, findings=tuple(findings))


class Overfitting:
    """Compare the errors on training and on held-out images."""

    name, title, slow = "overfitting", "error on held-out against training images", True
    finds = ("overfitted",)

    def __call__(self, subject: Subject) -> Iterator[Measured]:
        if set(subject.datasets) != {"train", "heldout"}:
            raise Skip("needs shards with held-out images")
        for index, stage in _stages(subject):
            seen, held = (
                float(_mean(_errors(subject, stage, subject.batches(index, split), COLOUR_LEVELS)).mean())
                for split in ("train", "heldout")
            )
            numbers = rounded({"training": seen, "heldout": held, "ratio": held / max(seen, 1e-30)}, 3)
            findings = []
            if held > OVERFITTED * seen:
                findings.append(
                    Finding(
                        name="overfitted",
                        severity="warning",
                        where=_where(stage),
                        numbers=numbers,
                        explanation=f"The error on held-out images is {held / seen:.3g} times that on training images: "
                        "the network has memorised them.",
                        remedy="Export an earlier checkpoint (`imagen export --step`), or train on more images, with "
                        "--data.flip true, or with fewer parameters.",
                    )
                )
            yield Measured(where=_where(stage), numbers=numbers, findings=tuple(findings))


def visible_levels(config: StageConfig) -> tuple[float, ...]:
    """Return the levels at which a stage is assessed.

    Where a stage generates detail, noise is scaled by detail_std in pixels: the last levels would be invisible there.
    """
    if config.detail_std is None:
        return LEVELS
    highest = LEVELS[-1] + 2 * math.log(config.detail_std)
    return tuple(level for level in LEVELS if level <= max(highest, LEVELS[2]))


def _stages(subject: Subject) -> list[tuple[int, Stage]]:
    """Return the stages with their indices. Raises Skip without a network or without data."""
    if not subject.stages:
        raise Skip("needs a network")
    _ = subject.datasets
    return list(enumerate(subject.cascade.stages))


def _errors(subject: Subject, stage: Stage, batches: Sequence[Batch], levels: tuple[float, ...]) -> dict[float, Tensor]:
    """Return the errors [images of all batches] at each level; results are shared between checks."""
    found = {}
    for level in subject.each(levels, f"{_where(stage)}: noise levels"):
        for batch in batches:
            key = (id(stage), id(batch), level)
            if key not in subject.cache:
                with stage.loaded_unet(subject.device, subject.dtype) as predict:
                    errors = x0_errors(stage.config, predict, batch, level, subject.device)
                subject.cache[key] = errors, stage, batch  # these live as long as their ids are keys
        found[level] = torch.cat([subject.cache[id(stage), id(batch), level][0] for batch in batches])
    return found


def _mean(errors: dict[float, Tensor]) -> Tensor:
    return torch.stack(list(errors.values())).mean(0)


def _exchanged(batch: Batch) -> Batch:
    """Return the batch with red and blue exchanged."""
    return replace(batch, image=batch.image.flip(1), low_res=None if batch.low_res is None else batch.low_res.flip(1))


def _where(stage: Stage) -> str:
    return f"stage {stage.config.resolution}"


def _names(predictor: str) -> str:
    return {
        "zero": "an output of zero",
        "mean": "the mean colour",
        "identity": "the noised image itself",
        "upsampled": "the upsampled low-resolution image",
    }[predictor]
