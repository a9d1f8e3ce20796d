"""Check the log of a training run: learning rate, gradients, skipped steps, and the course of the loss."""

import statistics
from collections.abc import Iterator, Sequence
from typing import Any

from imagen.doctor.finding import Finding, Measured, Numbers, Severity, Skip
from imagen.doctor.subject import Subject
from imagen.train.experiment import Experiment

LOG = "training log"
SKIPPED = 0.01  # tolerated share of non-finite steps
REPLACED = 0.05  # tolerated share of bad samples
SPIKE = 30.0  # of a gradient norm, in medians
RISE, FALL = 1.2, 0.97  # loss of the last fifth relative to the lowest, and to the first fifth
NOISE = 0.5  # relative standard deviation of the loss from one row to the next
ENDED = 0.2  # share of rows with a rate below 1 % of the highest
FEW = 5  # rows below which the loss is not assessed


class LearningRate:
    """Judge the learning rate over steps."""

    name, title, slow = "learning rate", "the learning rate over steps", False
    finds = ("learning-rate-zero", "warmup-unfinished", "learning-rate-ended")

    def __call__(self, subject: Subject) -> Iterator[Measured]:
        optim, rows = _experiment(subject).optim, subject.training.rows
        rates = _values(rows, "lr")
        if not rates:
            raise Skip("the log has no learning rates")
        step, highest, last = rows[-1]["step"], max(rates), rates[-1]
        numbers: Numbers = {"steps": step, "highest": highest, "last": last, "configured": optim.lr}
        findings = []
        tiny = sum(rate < 0.01 * highest for rate in rates[len(rates) // 2 :]) / len(rates)
        if highest < 1e-9:
            findings.append(
                _finding(
                    "learning-rate-zero",
                    numbers,
                    f"The learning rate never exceeds {highest:.1g}: the weights do not change.",
                    "Start again with --optim.lr 1e-4 or so.",
                )
            )
        elif step < optim.warmup_steps and last < 0.5 * optim.lr:
            numbers["warmup_steps"] = optim.warmup_steps
            findings.append(
                _finding(
                    "warmup-unfinished",
                    numbers,
                    f"After {step:,} steps the learning rate is {last:.2g}, {last / optim.lr:.0%} of optim.lr "
                    f"({optim.lr:g}), because the warm-up takes {optim.warmup_steps:,} steps.",
                    "Train longer, or start again with an --optim.warmup_steps of a few percent of the steps.",
                    "warning" if last > 0.1 * optim.lr else "problem",
                )
            )
        elif tiny > ENDED:
            numbers["share_ended"] = round(tiny, 3)
            findings.append(
                _finding(
                    "learning-rate-ended",
                    numbers,
                    f"In the last {tiny:.0%} of the log the learning rate is below 1 % of its highest value "
                    f"({highest:.2g}): these steps changed almost nothing.",
                    "Resume with more --train.steps, or with --optim.schedule constant.",
                    "warning",
                )
            )
        yield Measured(where=LOG, numbers=numbers, findings=tuple(findings))


class Steps:
    """Judge gradient norms, skipped steps, and replaced samples."""

    name, title, slow = "gradients", "gradient norms and skipped steps", False
    finds = ("nonfinite-steps", "gradient-zero", "gradient-spikes", "samples-replaced")

    def __call__(self, subject: Subject) -> Iterator[Measured]:
        experiment, rows = _experiment(subject), subject.training.rows
        norms, steps = _values(rows, "grad_norm"), rows[-1]["step"]
        skipped = sum(_values(rows, "nonfinite")) / steps
        replaced = sum(_values(rows, "bad_samples")) / (steps * experiment.train.batch_size)
        numbers: Numbers = {"skipped": round(skipped, 4), "replaced": round(replaced, 4)}
        findings = []
        if skipped > SKIPPED:
            findings.append(
                _finding(
                    "nonfinite-steps",
                    numbers,
                    f"{skipped:.1%} of {steps:,} steps were skipped because loss or gradient was NaN or infinite.",
                    "Lower --optim.lr, train with --train.precision bf16 or fp32, and look at the samples that the "
                    "log names.",
                )
            )
        if replaced > REPLACED:
            findings.append(
                _finding(
                    "samples-replaced",
                    numbers,
                    f"{replaced:.1%} of the samples could not be read and were replaced by others.",
                    "Build the shards again with `imagen data build`, which rejects such images and says why.",
                    "warning",
                )
            )
        if norms:
            median, later = statistics.median(norms), norms[len(norms) // 4 :]
            spike = max(later) / max(median, 1e-30)
            numbers |= {"median_norm": median, "highest_norm": max(norms), "clip_norm": experiment.optim.clip_norm}
            if median < 1e-8:
                findings.append(
                    _finding(
                        "gradient-zero",
                        numbers,
                        f"The median gradient norm is {median:.1g}: the network receives no gradient.",
                        "Check the loss weighting (stage.objective) and the range of the images.",
                    )
                )
            elif spike > SPIKE:
                numbers["spike"] = round(spike, 1)
                findings.append(
                    _finding(
                        "gradient-spikes",
                        numbers,
                        f"The largest gradient norm is {max(later):.3g}, {spike:.0f} times the median ({median:.3g}).",
                        "Lower --optim.lr or --optim.clip_norm, or lengthen --optim.warmup_steps.",
                        "warning",
                    )
                )
        yield Measured(where=LOG, numbers=numbers, findings=tuple(findings))


class LossCourse:
    """Judge whether the loss falls, rises or jumps."""

    name, title, slow = "loss over steps", "the loss over steps", False
    finds = ("loss-rising", "loss-not-falling", "loss-noisy")

    def __call__(self, subject: Subject) -> Iterator[Measured]:
        losses = _values(subject.training.rows, "loss")
        if len(losses) < FEW:
            raise Skip(f"needs {FEW} rows of metrics, there are {len(losses)}")
        part = max(1, len(losses) // 5)
        means = [statistics.fmean(losses[i : i + part]) for i in range(len(losses) - part + 1)]
        first, lowest, last = means[0], min(means), means[-1]
        half = losses[len(losses) // 2 :]
        # The scatter of rows about a straight line through their neighbours: 3/2 of the variance of each.
        bends = [b - (a + c) / 2 for a, b, c in zip(half, half[1:], half[2:], strict=False)]
        scatter = (statistics.fmean(bend**2 for bend in bends) / 1.5) ** 0.5 / statistics.fmean(half) if bends else 0.0
        numbers: Numbers = {"first": first, "lowest": lowest, "last": last, "scatter": round(scatter, 3)}
        findings = []
        if last > RISE * lowest:
            findings.append(
                _finding(
                    "loss-rising",
                    numbers,
                    f"The loss fell to {lowest:.4g} and rose again to {last:.4g}, {last / lowest - 1:.0%} above it: "
                    "training diverges.",
                    "The learning rate is too high. Resume from an earlier checkpoint (train.keep_every) with a third "
                    "of --optim.lr (and --optim.muon_lr), or a longer --optim.warmup_steps.",
                )
            )
        elif last > FALL * first:
            findings.append(
                _finding(
                    "loss-not-falling",
                    numbers,
                    f"The loss is {last:.4g} at the end and was {first:.4g} at the beginning of the log.",
                    "If the run is young, train longer. Else raise --optim.lr by factors of 3 until the loss falls. A "
                    "run that began with trained weights may have little left to learn.",
                    "warning",
                )
            )
        if scatter > NOISE:
            findings.append(
                _finding(
                    "loss-noisy",
                    numbers,
                    f"From row to row the loss scatters by {scatter:.0%} of its mean.",
                    "Lower --optim.lr, raise --train.batch_size, or average more steps per row (--train.log_every).",
                    "warning",
                )
            )
        yield Measured(where=LOG, numbers=numbers, findings=tuple(findings))


class TrainingText:
    """Judge settings under which a network cannot learn its prompts."""

    name, title, slow = "text settings", "settings of text in training", False
    finds = ("captions-shuffled", "no-text-dropout")

    def __call__(self, subject: Subject) -> Iterator[Measured]:
        experiment = _experiment(subject)
        if experiment.text is None:
            raise Skip("the stage reads no text")
        dropout, guidance = experiment.train.text_dropout, experiment.stage.sampling.guidance
        numbers: Numbers = {"text_dropout": dropout, "guidance": guidance}
        findings = []
        if experiment.train.shuffle_captions:
            findings.append(
                _finding(
                    "captions-shuffled",
                    numbers,
                    "train.shuffle_captions is true: every image is trained with another image's caption.",
                    "This is a control experiment; start a new run without it.",
                )
            )
        if dropout == 0 and guidance != 1:
            findings.append(
                _finding(
                    "no-text-dropout",
                    numbers,
                    f"train.text_dropout is 0, but sampling uses guidance scale {guidance:g}, which needs a network "
                    "that was also trained without text.",
                    "Train with --train.text_dropout 0.1, or sample with --guidance 1.",
                )
            )
        yield Measured(where=LOG, numbers=numbers, findings=tuple(findings))


def _experiment(subject: Subject) -> Experiment:
    if subject.experiment is None:
        raise Skip("only a training run has a config of its training")
    return subject.experiment


def _values(rows: Sequence[dict[str, Any]], name: str) -> list[float]:
    """Return the values of a field of the log, without rows that lack it."""
    return [float(row[name]) for row in rows if isinstance(row.get(name), int | float)]


def _finding(name: str, numbers: Numbers, explanation: str, remedy: str, severity: Severity = "problem") -> Finding:
    return Finding(name=name, severity=severity, where=LOG, numbers=numbers, explanation=explanation, remedy=remedy)
