"""The training loop."""

from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, nullcontext, suppress
from dataclasses import asdict
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor

from imagen.data.shards.mixture import Data, check_data
from imagen.devices import default_device
from imagen.errors import UserError
from imagen.files import locked, write_json
from imagen.text.protocol import DatasetEncoder
from imagen.train.callbacks import Callback, is_due
from imagen.train.console import ConsoleProgress
from imagen.train.evaluation import Evaluation
from imagen.train.experiment import Experiment
from imagen.train.gap import ValidationGap
from imagen.train.loggers import build_loggers, check_loggers
from imagen.train.meter import Row
from imagen.train.metrics import MetricRows, MetricsFile
from imagen.train.optim import learning_rate
from imagen.train.profiling import Profiler, Span, check_span
from imagen.train.progress import TrainResult
from imagen.train.ranks import Ranks
from imagen.train.setup import Report, TrainingRun
from imagen.train.snapshots import EmaSnapshots
from imagen.train.step import PendingStep, StepResult, launch_step


def train(
    experiment: Experiment,
    data: Data,
    out: str | Path,
    *,
    callbacks: Sequence[Callback] = (),
    minutes: float | None = None,
    profile: Span | None = None,
    encoder: DatasetEncoder | None = None,
    ranks: Ranks | None = None,
    report: Report = print,
) -> TrainResult:
    """Train one stage on the shards in `data`, in the run folder `out`; resume if the folder has a checkpoint.

    Writes checkpoints, metrics and EMA snapshots; `imagen.train.run.train_run` adds sample grids and exports.

    callbacks: called on every rank, after validation and metrics; before a checkpoint of the same step, unless they set
        `after_checkpoint`.
    minutes: limit of wall time, after which training stops with a checkpoint. It does not affect the learning rate.
    profile: first and last step of a trace, which each rank writes to RUN/profile.
    encoder: encoder of the captions, for data.on_the_fly; default: loaded at its first use.
    ranks: the processes that train together; each of them calls this function (default: this process alone).
    report: receives lines for the user, on the first rank.

    Raises UserError for problems that the user can fix: data that do not match the experiment, a folder of another run,
    a full disk, a loss that is non-finite for train.max_nonfinite consecutive steps.
    """
    ranks, folder = ranks or Ranks(torch.device(default_device())), Path(out)
    if profile is not None:
        check_span(profile, experiment.train.steps)
    ranks.on_first(lambda: check_loggers(experiment.train.loggers))  # before the run folder is created
    ranks.on_first(lambda: check_data(data))
    busy = f"another process is training in {folder}; wait for it or choose another folder"
    with locked(folder, busy) if ranks.is_first else nullcontext():
        trainer = Trainer(
            experiment, data, folder, callbacks, ranks=ranks, report=report, minutes=minutes, encoder=encoder
        )
        return trainer.train(profile)


class Trainer:
    """The training loop and its callbacks. `run` is their shared state."""

    def __init__(
        self,
        experiment: Experiment,
        data: Data,
        folder: Path,
        callbacks: Sequence[Callback] = (),
        *,
        ranks: Ranks | None = None,
        report: Report = print,
        minutes: float | None = None,
        encoder: DatasetEncoder | None = None,
    ):
        """Set up the run; the caller has locked its folder. Parameters as for `train`."""
        ranks = ranks or Ranks()
        self.run = TrainingRun(experiment, data, folder, ranks=ranks, report=report, minutes=minutes, encoder=encoder)
        # The gap is one of the diffusion loss, which a student of few steps no longer minimises.
        measures_gap = experiment.text is not None and not experiment.distill.teacher_steps
        self.callbacks: list[Callback] = [ValidationGap()] if measures_gap else []
        if experiment.train.evaluate_every is not None:
            self.callbacks.append(Evaluation())
        self.callbacks.append(MetricRows())
        if ranks.is_first:
            self.callbacks += [MetricsFile(), *build_loggers(experiment.train.loggers)]
        self.callbacks += [*callbacks, EmaSnapshots()]
        if ranks.is_first:
            self.callbacks.append(ConsoleProgress())
        # On a CPU, results are read after each step; on a GPU, while the next step is computed.
        self.waits_each_step = ranks.device.type == "cpu"

    def train(self, profile: Span | None = None) -> TrainResult:
        """Train from the run's current step to its last one, or until there is a reason to stop."""
        run, config, progress, stopper = self.run, self.run.config, self.run.progress, self.run.stopper
        began, batches = progress.step, run.batches()
        profiler = Profiler(run.folder / "profile", profile, run.ranks, run.report)
        pending: deque[tuple[int, PendingStep]] = deque()
        ended: TrainResult | None = None

        def end(callback: Callback) -> None:
            callback.on_end(run, ended)

        def finish_writing() -> None:
            with suppress(UserError):  # after an exception: that one is reported
                run.checkpointer.checkpoints.wait()

        with ExitStack() as stack, stopper, profiler:
            self._connect()
            if run.ranks.world_size == 1:  # of several ranks, one that failed would never write its part
                stack.callback(finish_writing)
            for callback in self.callbacks:
                callback.on_start(run)
                stack.callback(end, callback)
            stop = stopper.reason is not None
            # At least one step is trained even if the setup used up the time budget, so that reruns make progress.
            while progress.step < config.steps and (not stop or progress.step == began):
                progress.step += 1
                profiler.begin(progress.step)
                run.optimizer.set_learning_rate(learning_rate(run.experiment.optim, progress.step, config.steps))
                with run.timer.step(config.batch_size):
                    pending.append((progress.step, self.launch(batches)))
                    run.checkpointer.update_emas(progress.step)
                    results = [(step, launched.result()) for step, launched in self._ready(pending, began)]
                for step, result in results:
                    stop |= result.stop  # all ranks stop after the same step
                    self._receive(step, result)
                self._at_interval(progress.step, after_checkpoint=False)
                if is_due(config.checkpoint_every, progress.step, config.steps):
                    self._checkpoint()
                self._at_interval(progress.step, after_checkpoint=True)
            for step, launched in pending:
                self._receive(step, launched.result())
            if run.checkpointer.saved_step != progress.step:
                self._checkpoint()
            run.checkpointer.checkpoints.wait()
            ended = self._result()
        self._report_end(ended)
        return ended

    def _at_interval(self, step: int, *, after_checkpoint: bool) -> None:
        for callback in self.callbacks:
            if callback.after_checkpoint == after_checkpoint and callback.is_due(step, self.run.config.steps):
                callback.on_interval(self.run, step)

    def launch(self, batches: Iterator) -> PendingStep:
        """Launch one step on the next micro-batches. All ranks call this together."""
        run = self.run
        return launch_step(
            run.model.network,
            islice(batches, run.accumulation),
            run.accumulation,
            run.forward_process,
            run.optimizer,
            clip_norm=run.experiment.optim.clip_norm,
            autocast=run.model.step_autocast,
            ranks=run.ranks,
            stop=lambda: run.stopper.reason is not None,
            compute=run.timer.compute.running,
            scale=run.progress.loss_scale,
            copy=run.model.copy,
        )

    def _ready(self, pending: deque[tuple[int, PendingStep]], began: int) -> Iterator[tuple[int, PendingStep]]:
        """Yield the steps to read now: all pending ones if a callback or checkpoint is due, else all but the last."""
        step, steps = self.run.step, self.run.config.steps
        read_all = self.waits_each_step or step == began + 1  # the first step is reported immediately
        read_all |= any(callback.is_due(step, steps) for callback in self.callbacks)
        read_all |= is_due(self.run.config.checkpoint_every, step, steps)
        while len(pending) > (0 if read_all else 1):
            yield pending.popleft()

    def _receive(self, step: int, result: StepResult) -> None:
        """Add a step's result to the metrics, and pass it to the callbacks."""
        run, progress = self.run, self.run.progress
        progress.meter.add(result)
        if result.problem is None:
            progress.skipped_in_a_row = 0
        else:
            progress.skipped_in_a_row += 1
            message = f"step {step}: {result.problem}"
            if progress.skipped_in_a_row >= run.config.max_nonfinite:
                run.ranks.fail(
                    f"{message}; {progress.skipped_in_a_row} consecutive steps were skipped: inspect these samples, "
                    "or start again with a lower optim.lr or train.precision fp32"
                )
            run.report(f"{message}; step skipped ({progress.skipped_in_a_row} consecutive)")
        for callback in self.callbacks:
            callback.on_step(run, step, result)

    def _checkpoint(self) -> None:
        run, step = self.run, self.run.step
        for callback in self.callbacks:
            callback.before_checkpoint(run, step)
        state = {"config": run.config_json, "position": run.images, "progress": asdict(run.progress)}
        run.checkpointer.checkpoint(step, state | {"data": run.fingerprint, "weights": run.weights})
        for callback in self.callbacks:
            callback.on_checkpoint(run, step)

    def _connect(self) -> None:
        """Let callbacks pass rows and images to all callbacks."""
        run = self.run

        def log_row(row: Row) -> None:
            for callback in self.callbacks:
                callback.on_row(run, run.step, row)

        def log_image(name: str, image_CHW: Tensor) -> None:
            for callback in self.callbacks:
                callback.on_image(run, run.step, name, image_CHW)

        run.log_row, run.log_image = log_row, log_image

    def _result(self) -> TrainResult:
        run = self.run
        reasons = run.ranks.gather_objects(run.stopper.reason)
        finished = run.step >= run.config.steps
        reason = "all steps are done" if finished else next((reason for reason in reasons if reason), "")
        return TrainResult(step=run.step, images=run.images, finished=finished, reason=reason)

    def _report_end(self, ended: TrainResult) -> None:
        run, steps = self.run, self.run.config.steps
        if ended.finished:
            run.report(f"{run.folder}: all {steps} steps are done")
        else:
            run.report(
                f"{run.folder}: {ended.reason}; step {ended.step} of {steps} is saved; run the same command again to "
                "resume"
            )
        if run.ranks.is_first:  # for scripts that restart training; a failed run has no status.json
            write_json(run.folder / "status.json", asdict(ended))
