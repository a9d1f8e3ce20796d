"""Set up the training of one stage: model, optimizer, data, and the state of the last checkpoint."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from imagen.data.loading.batches import Batch
from imagen.data.shards.mixture import Data
from imagen.errors import check_number
from imagen.jsonconfig import to_json
from imagen.models.compiling import cache_folder
from imagen.precision import precision_name
from imagen.stage.distillation import Distillation, divided_steps, least_weight
from imagen.stage.loss import ForwardProcess
from imagen.text.config import absolute
from imagen.text.protocol import DatasetEncoder
from imagen.train.checkpoint import checkpoint_paths
from imagen.train.checkpointing import Checkpointer
from imagen.train.clock import StepTimer
from imagen.train.config import micro_batches
from imagen.train.data import TrainingData
from imagen.train.distill import load_teacher
from imagen.train.experiment import Experiment, check
from imagen.train.finetune import prepare
from imagen.train.flops import build_mfu
from imagen.train.layout import named_weights, permuted_weights
from imagen.train.meter import Row
from imagen.train.model import build_model
from imagen.train.optim import build_optimizer
from imagen.train.parallel import describe
from imagen.train.posthoc import forget_snapshots
from imagen.train.progress import Progress
from imagen.train.ranks import Ranks
from imagen.train.rundir import open_run
from imagen.train.scaling import LossScale
from imagen.train.shapes import report_sizes, with_sizes, within_buckets
from imagen.train.sharded import reshard
from imagen.train.stopping import Stopper
from imagen.train.validation import with_other_captions

Report = Callable[[str], None]


class TrainingRun:
    """The state of one stage's training, shared by the training loop and its callbacks.

    Tensors are loaded from the last checkpoint, or initialized from `train.seed` if there is none.
    """

    def __init__(
        self,
        experiment: Experiment,
        data: Data,
        folder: Path,
        *,
        ranks: Ranks,
        report: Report = print,
        minutes: float | None = None,
        encoder: DatasetEncoder | None = None,
    ):
        """All ranks call this together, within `rundir.locked`. Parameters as for `imagen.train.trainer.train`."""
        self.stopper = Stopper(minutes, time.monotonic())  # the time budget includes the setup
        experiment = replace(
            experiment,
            stage=with_sizes(experiment.stage, experiment.data),
            text=experiment.text and replace(experiment.text, encoder=absolute(experiment.text.encoder)),
            train=within_buckets(experiment.train, experiment.data),
        )
        self.experiment, self.config, self.folder, self.ranks = experiment, experiment.train, folder, ranks
        self.report: Report = report if ranks.is_first else _silent
        ranks.on_first(lambda: check(experiment, ranks.world_size))
        self.config_json = ranks.on_first(lambda: open_run(folder, to_json(experiment), self.report))
        # That of an earlier process: scripts start a run again if it is there, so it may not outlast a failure.
        ranks.on_first(lambda: (folder / "status.json").unlink(missing_ok=True))
        self.micro_batch, self.accumulation = micro_batches(self.config, ranks.world_size)
        self.data = TrainingData(experiment, data, ranks, encoder)

        resumes = ranks.on_first(lambda: bool(checkpoint_paths(folder / "checkpoints")))
        self.model = build_model(
            experiment, ranks, lambda unet: prepare(unet, experiment, folder, ranks, self.report, resumes=resumes)
        )
        self.unet = self.model.unet
        # Muon divides its work among processes that hold the same full parameters.
        replicas = dist.group.WORLD if isinstance(self.model.network, DistributedDataParallel) else None
        permuted = permuted_weights(self.unet)
        self.optimizer = build_optimizer(named_weights(self.unet), experiment.optim, replicas, permuted)
        self.checkpointer = Checkpointer(folder, self.config, self.unet, self.optimizer, ranks)
        self.progress = Progress(loss_scale=LossScale.build(self.model.dtype))
        self._resume()

        self.loader = self.data.training_loader(self.images, self.micro_batch, ranks)
        self.forward_process = self._build_forward_process()
        mfu = build_mfu(experiment, ranks) if ranks.is_first else None
        self.timer = StepTimer(ranks, self.unet, mfu, self.forward_process.text_length)
        self.measurements: Row = {}  # of callbacks, for the next row of metrics
        # Pass a row or an image to all callbacks; the training loop sets both.
        self.log_row: Callable[[Row], None] = lambda row: None
        self.log_image: Callable[[str, Tensor], None] = lambda name, image_CHW: None
        self._report_summary()

    @property
    def step(self) -> int:
        """Number of completed steps; during a step, its number."""
        return self.progress.step

    @property
    def images(self) -> int:
        """Number of training images since step 0: the global position in the data."""
        return self.progress.step * self.config.batch_size

    @property
    def seconds_left(self) -> float:
        """Estimated time to the last step or to the end of the time budget, whichever comes first."""
        seconds = self.timer.eta(self.config.steps - self.step)
        return seconds if self.stopper.seconds_left is None else max(0.0, min(seconds, self.stopper.seconds_left))

    def batches(self) -> Iterator[Batch]:
        """Yield this rank's micro-batches, and measure the time spent waiting for them."""
        batches = self.timer.timed(iter(self.loader))
        return map(with_other_captions, batches) if self.config.shuffle_captions else batches

    @contextmanager
    def evaluating(self) -> Iterator[nn.Module]:
        """Yield the U-Net with EMA weights, in eval mode and without gradients. All ranks call this together.

        The U-Net runs eagerly: compiling it for a few batches of other shapes would take longer than running them.
        """
        with self.checkpointer.ema.applied_to(self.unet):
            self.unet.eval()
            try:
                with torch.no_grad(), torch.compiler.set_stance("force_eager"):
                    yield self.unet
            finally:
                self.unet.train()
                reshard(self.unet)

    def _resume(self) -> None:
        """Load the last checkpoint that can be read, if there is one."""
        fingerprint = self.data.training.fingerprint()
        self.fingerprint = fingerprint
        self.weights = [str(share) for share in self.data.shares]
        state = self.checkpointer.resume(self.report)
        if state is None:
            self.ranks.on_first(lambda: forget_snapshots(self.folder / "averages"))
            return
        initial_scale, where = self.progress.loss_scale, f"{self.folder}: state.json of its checkpoint"
        self.progress = self.ranks.on_first(lambda: Progress.from_json(state, where))
        # Checkpoints of earlier versions have no such field, and EMAs that include every step.
        averaged = state.get("averaged_step", self.step)
        check_number(f"{where}: averaged_step", averaged, least=0, most=self.step)
        self.checkpointer.averaged_step = averaged
        self.ranks.on_first(lambda: forget_snapshots(self.folder / "averages", after=self.step))
        if self.progress.loss_scale.active != initial_scale.active:  # resumed on a device of another precision
            self.progress.loss_scale = initial_scale
        self.report(f"{self.folder}: resuming from step {self.step}")
        before = state.get("weights", ["1"])
        if len(before) == len(self.weights) and before != self.weights:
            shown = ", ".join(f"{float(Fraction(share)):.4g}" for share in before)
            self.report(f"{self.folder}: from here on the data are mixed as {self.data.folder} (before: {shown})")
        if state.get("data", fingerprint) != fingerprint:
            self.report(
                f"{self.folder}: {self.data.folder} is not the data of the previous steps; "
                "training continues with the new data"
            )

    def _build_forward_process(self) -> ForwardProcess:
        experiment, config, device = self.experiment, self.config, self.ranks.device
        options: dict[str, Any] = {
            "seed": config.seed,
            "batch_size": config.batch_size,
            "device": device,
            "text_dropout": config.text_dropout,
            "unconditional_LD": self.data.unconditional,
            "text_length": self._text_length(),
        }
        distill, init = experiment.distill, experiment.init
        if not distill.teacher_steps or distill.teacher is None or init is None:
            return ForwardProcess(experiment.stage, schedule=config.schedule, **options)
        predict = load_teacher(experiment.stage, init, self.folder, device, self.model.dtype)
        steps = divided_steps(experiment.stage, distill.teacher, distill.teacher_steps)
        if (least := least_weight(steps, experiment.stage.objective)) < 1e-3:
            self.report(
                f"stage.objective.weighting is {experiment.stage.objective.weighting}: one of the student's steps has "
                f"{least:.0e} of another's weight and will hardly be trained; use --stage.objective.weighting velocity"
            )
        return Distillation(experiment.stage, predict, distill.teacher, steps, **options)

    def _text_length(self) -> int:
        """Return the length to which text is padded for a compiled network, which recompiles for each new length."""
        if not self.model.compiled or self.experiment.text is None:
            return 0
        null_LD = self.data.unconditional
        return max(self.experiment.text.max_tokens, 0 if null_LD is None else len(null_LD))

    def _report_summary(self) -> None:
        where = f"{describe(self.experiment.parallel, self.ranks)} in {precision_name(self.model.dtype)}"
        parts = f" in micro-batches of {self.micro_batch}" if self.accumulation > 1 else ""
        frozen = self.model.trained != self.model.parameters
        trained = f" ({self.model.trained / 1e6:,.2f}M trained)" if frozen else ""
        self.report(
            f"{self.experiment.name}: {self.model.parameters / 1e6:,.1f}M parameters{trained} on {where}, "
            f"{len(self.data.training)} images, {self.config.steps} steps of {self.config.batch_size}{parts}"
        )
        if self.ranks.is_first:
            report_sizes(self.experiment.stage, self.experiment.data, self.data.training, self.report)
        if self.model.compiled:
            self.report(
                "the first step compiles the network, which takes minutes, or seconds if it is in the cache: "
                f"{cache_folder()}"
            )


def _silent(line: str) -> None:
    """Ignore a line: only the first rank reports."""
