"""One stage's training: setup, the loop, and everything at intervals around it."""

import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from imagen import limits
from imagen.data.embed.encode import Encoder
from imagen.data.loading.config import DataConfig
from imagen.data.loading.loader import Loader
from imagen.data.shards.dataset import splits
from imagen.diffusion import randomness
from imagen.errors import UserError, check_number
from imagen.files import write_json
from imagen.jsonconfig import from_json
from imagen.models.compiling import cache_folder, compiles
from imagen.models.unet import UNet
from imagen.precision import autocast, autocast_dtype, precision_name
from imagen.stage.loss import Noising
from imagen.train.clock import Clock
from imagen.train.config import Experiment, TrainConfig, check, micro_batches
from imagen.train.console import Console
from imagen.train.flops import build_mfu
from imagen.train.half import HalfCopy
from imagen.train.keeping import Export, Keeper
from imagen.train.layout import named_weights, permuted_weights
from imagen.train.logging import BUCKETS, Meter, Row, RunLog
from imagen.train.on_the_fly import EncodingLoader, caption_encoder, open_loader
from imagen.train.optim import build_optimizer, learning_rate
from imagen.train.parallel import build_mesh, parallelize, spread
from imagen.train.profiling import Profiler, Span, check_span
from imagen.train.ranks import Ranks
from imagen.train.rundir import claim, locked
from imagen.train.scaling import LossScale
from imagen.train.sharded import free_gathered
from imagen.train.step import Launched, StepResult, launch_step
from imagen.train.stopping import SIGNALLED, Stopper
from imagen.train.validation import ConditionalGap, with_other_captions

__all__ = ["Experiment", "TrainConfig", "TrainResult", "Trainer", "check", "train"]

GAP_BATCH = 16  # held-out samples at a time, on any number of ranks

Sampler = Callable[[nn.Module, int], Tensor | None]


@dataclass(frozen=True)
class TrainResult:
    step: int
    images: int  # seen since the very beginning
    finished: bool  # all of train.steps are done
    reason: str  # why it ended

    @property
    def signalled(self) -> bool:
        """Whether somebody stopped it."""
        return self.reason.startswith(SIGNALLED)


def train(
    experiment: Experiment,
    config_json: dict[str, Any],
    data: Path,
    run: Path,
    *,
    sampler: Sampler | None = None,
    export: Export | None = None,
    minutes: float | None = None,
    profile: Span | None = None,
    encoder: Encoder | None = None,
    ranks: Ranks | None = None,
    say: Callable[[str], None] = print,
) -> TrainResult:
    """Train one stage on the shards in `data`, in the folder `run`; called again, go on exactly where it stopped.

    config_json: the experiment as JSON, kept as RUN/config.json; a rerun with another one is refused.
    sampler: given the U-Net with averaged weights, in eval mode, and the step, on every rank; returns a sheet of
        pictures (uint8 [3, H, W]) for TensorBoard, or None.
    export: given the averaged weights (float32, on the CPU) and {"step": ..., "images": ...}, on the first rank; writes
        RUN/export.
    minutes: stop at a checkpoint after so much wall time. The learning rate follows steps, not time.
    profile: steps, from the first to the last one, of which each rank writes a trace into RUN/profile.
    encoder: of the captions, if data.on_the_fly; one that is loaded already need not be loaded twice.
    ranks: the processes that train together, each of which calls this (default: this one alone, on the CPU).
    say: where one-line reports go, of the first rank.

    Raises UserError for what the user can mend: data that do not fit, another run's folder, a full disk, a loss that
    stays non-finite for train.max_nonfinite steps.
    """
    ranks = ranks or Ranks()
    if profile is not None:
        check_span(profile, experiment.train.steps)
    with locked(run) if ranks.first else nullcontext():
        trainer = Trainer(experiment, config_json, data, run, encoder=encoder, ranks=ranks, say=say)
        return trainer.run(sampler, export, minutes, profile)


@dataclass
class Progress:
    """Where a run stands: all of its state that is not a tensor."""

    step: int = 0
    skipped_in_a_row: int = 0
    meter: Meter = field(default_factory=Meter)
    loss_scale: LossScale = field(default_factory=LossScale)

    @classmethod
    def from_json(cls, facts: dict[str, Any], where: str) -> "Progress":
        """That of a checkpoint's `state.json`. UserError, naming `where` and the field, if it cannot be."""
        progress = from_json(cls, facts.get("progress") if isinstance(facts, dict) else None, where)
        for name, numbers in (("loss", progress.meter.bucket_loss), ("images", progress.meter.bucket_images)):
            if len(numbers) != BUCKETS:
                raise UserError(f"{where}: meter.bucket_{name} has {len(numbers)} numbers; it must have {BUCKETS}")
        for name, number in (("step", progress.step), ("loss_scale.steps", progress.loss_scale.steps)):
            check_number(f"{where}: {name}", number, least=0, most=limits.TRAIN["steps"]["most"])
        return progress


class Trainer:
    """What `train` sets up. Its tensors are those of the last checkpoint, or new ones drawn from the seed."""

    def __init__(
        self,
        experiment: Experiment,
        config_json: dict[str, Any],
        data: Path,
        run: Path,
        *,
        encoder: Encoder | None = None,
        ranks: Ranks | None = None,
        say: Callable[[str], None] = print,
    ):
        self.began = time.monotonic()
        self.experiment, self.config, self.folder = experiment, experiment.train, run
        self.ranks = ranks or Ranks()
        self.say = say if self.ranks.first else _silent
        self.ranks.from_first(lambda: check(experiment, self.ranks.world_size))
        self.config_json = self.ranks.from_first(lambda: claim(run, config_json, self.say))
        self.micro_batch, self.accumulation = micro_batches(self.config, self.ranks.world_size)

        device, parallel = self.ranks.device, experiment.parallel
        dtype = autocast_dtype(device, self.config.precision)
        self.autocast = partial(autocast, device, dtype)
        mesh = build_mesh(parallel, device.type, self.ranks.world_size)
        # On GPUs the network itself is in bfloat16, gathered so or copied so, and nothing is cast on the way. DDP
        # exchanges the gradients of the very parameters that it wraps, and keeps autocast: it does so in float32.
        halved = device.type == "cuda" and dtype is torch.bfloat16
        alone = self.ranks.world_size == 1
        self.computing = nullcontext if halved and (alone or mesh is not None) else self.autocast
        torch.manual_seed(randomness.seed_for(self.config.seed, 0, randomness.INIT))
        self.unet = UNet(experiment.stage.unet).to(device)
        if mesh is None:  # what is sharded must be contiguous
            self.unet.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stubs lack it
        self.parameters = sum(parameter.numel() for parameter in self.unet.parameters())
        # A CPU's group norm takes no float32 pictures with bfloat16 weights; on GPUs autocast sees to that.
        gathered = None if device.type == "cpu" else dtype
        self.copy = HalfCopy(self.unet, torch.bfloat16) if halved and alone else None
        compiled = replace(parallel, compile=compiles(device, parallel.compile))
        self.network = parallelize(self.unet, compiled, mesh, self.ranks.world_size, dtype=gathered)
        if self.copy is not None:
            parallelize(self.copy.network, compiled, None)
        self.compiled = compiled.compile
        self.reads_at_once = device.type == "cpu"  # else a step is read while the device is busy with the next one
        copies = dist.group.WORLD if isinstance(self.network, DistributedDataParallel) else None
        self.optimizer = build_optimizer(
            named_weights(self.unet), experiment.optim, copies, permuted_weights(self.unet)
        )
        self.kept = Keeper(run, self.config, self.unet, self.optimizer, self.ranks)
        self.progress = Progress(loss_scale=LossScale.build(dtype))
        if (facts := self.kept.resume(self.say)) is not None:
            scale, where = self.progress.loss_scale, f"{run}: state.json of its checkpoint"
            self.progress = self.ranks.from_first(lambda: Progress.from_json(facts, where))
            self.kept.averaged_step = self.progress.step
            if self.progress.loss_scale.active != scale.active:  # gone on with on a device of other formats
                self.progress.loss_scale = scale
            self.say(f"{run}: going on from step {self.progress.step}")

        self.encoder = encoder or caption_encoder(experiment, device)  # None: embeddings lie beside the shards
        place = {"position": self._images, "rank": self.ranks.rank, "world_size": self.ranks.world_size}
        self.loader = self._loader(data, experiment.data, self.micro_batch * self.ranks.world_size, **place)
        self.data = self.loader.dataset.fingerprint()
        if facts is not None and facts.get("data", self.data) != self.data:
            self.say(f"{run}: {data} are not the data of the steps before; from here on they are these")
        self.noising = Noising(
            experiment.stage,
            seed=self.config.seed,
            batch_size=self.config.batch_size,
            device=device,
            text_dropout=self.config.text_dropout,
            schedule=self.config.schedule,
            unconditional_LD=self.loader.unconditional,
            text_length=self._text_length(),
        )
        self.gap = None if experiment.text is None else self._gap(data)
        self.say(self._summary())
        if self.compiled:
            self.say(
                "the network is compiled in the first step: minutes, seconds where it was compiled before; kept in "
                f"{cache_folder()}"
            )

    def run(
        self, sampler: Sampler | None, export: Export | None, minutes: float | None, profile: Span | None = None
    ) -> TrainResult:
        """The loop, from where the run stands to its last step or to a reason to stop before."""
        config, progress = self.config, self.progress
        mfu = build_mfu(self.experiment, self.ranks) if self.ranks.first else None
        clock = Clock(self.ranks, self.unet, mfu, self.noising.text_length)
        profiler = Profiler(self.folder / "profile", profile, self.ranks, self.say)
        self._began = began = (
            progress.step
        )  # a budget that setting up has used up still buys one step: reruns always go on
        batches = clock.timed(iter(self.loader))
        if config.shuffle_captions:
            batches = map(with_other_captions, batches)
        if self.ranks.first:
            (self.folder / "status.json").unlink(missing_ok=True)
        console = Console(
            self.say, config.steps, log_every=config.log_every, began=progress.step, visible=self.ranks.first
        )
        log = RunLog(self.folder, progress.step, console) if self.ranks.first else None
        with closing(log) if log else nullcontext(), Stopper(minutes, self.began) as stopper, profiler, console:
            stop = stopper.reason is not None
            running: deque[tuple[int, Launched]] = deque()
            while progress.step < config.steps and (not stop or progress.step == began):
                progress.step += 1
                profiler.begin(progress.step)
                lr = learning_rate(self.experiment.optim, progress.step, config.steps)
                self.optimizer.set_learning_rate(lr)

                with clock.step(config.batch_size):
                    launched = launch_step(
                        self.network,
                        islice(batches, self.accumulation),
                        self.accumulation,
                        self.noising,
                        self.optimizer,
                        clip_norm=self.experiment.optim.clip_norm,
                        autocast=self.computing,
                        ranks=self.ranks,
                        stop=lambda: stopper.reason is not None,
                        working=clock.working.running,
                        scale=progress.loss_scale,
                        copy=self.copy,
                    )
                    self.kept.update(progress.step)
                    # A GPU begins with a step while the one before it is read.
                    running.append((progress.step, launched))
                    done = [(step, step_of.read()) for step, step_of in self._to_read(running)]
                for step, result in done:
                    stop |= result.stop  # all ranks stop after the same step
                    self._note(step, result)
                    console.stepped(step, result, clock.seconds_per_step, self._eta(clock, stopper))

                if self._due(config.log_every) or self._gap_due():
                    row = {**progress.meter.row(), "lr": lr, "images": self._images, **clock.row()}
                    row |= {**self._measure_gap(), "eta_s": self._eta(clock, stopper)}
                    if log is not None:
                        log.write(progress.step, row)
                    progress.meter = Meter()
                if sampler is not None and self._due(config.sample_every):
                    self._sample(sampler, log)
                if self._due(config.ema_snapshot_every):
                    self.kept.snapshot(progress.step)
                if self._due(config.checkpoint_every):
                    self._checkpoint(export, log)
            for step, launched in running:
                self._note(step, launched.read())
            if self.kept.saved_step != progress.step:
                self._checkpoint(export, log)
            self.kept.checkpoints.wait()
        reasons = self.ranks.gather_objects(stopper.reason)
        ended = self._result(next((reason for reason in reasons if reason), None))
        if self.ranks.first:  # for scripts that start this again and again; a run that failed has none
            write_json(self.folder / "status.json", asdict(ended))
        return ended

    def _summary(self) -> str:
        dtype = autocast_dtype(self.ranks.device, self.config.precision)
        where = f"{spread(self.experiment.parallel, self.ranks)} in {precision_name(dtype)}"
        parts = f" in micro-batches of {self.micro_batch}" if self.accumulation > 1 else ""
        return (
            f"{self.experiment.name}: {self.parameters / 1e6:,.1f}M parameters on {where}, {len(self.loader.dataset)} "
            f"pictures, {self.config.steps} steps of {self.config.batch_size}{parts}"
        )

    def _loader(self, data: Path, config: DataConfig, batch_size: int, **place: Any) -> Loader | EncodingLoader:
        place |= {"seed": self.config.seed, "pin_memory": self.ranks.device.type == "cuda"}
        return open_loader(self.experiment, data, config, self.encoder, batch_size=batch_size, **place)

    def _text_length(self) -> int:
        """To which texts are padded where the network is compiled: another length would be another graph."""
        if not self.compiled or self.experiment.text is None:
            return 0
        null_LD = self.loader.unconditional
        return max(self.experiment.text.max_tokens, 0 if null_LD is None else len(null_LD))

    def _gap(self, data: Path) -> ConditionalGap:
        """On held-out samples where there are any, always the same ones, none without its text; every rank does all of
        it, so that the number of ranks makes no difference."""
        split = "heldout" if "heldout" in splits(data) else "train"
        size = max(2, min(GAP_BATCH, self.config.gap_samples))
        count = -(-self.config.gap_samples // size)
        loader = self._loader(data, replace(self.experiment.data, workers=0), size, split=split)
        noising = Noising(
            self.experiment.stage,
            seed=self.config.seed,
            batch_size=size * count,
            device=self.ranks.device,
            schedule=self.config.schedule,
        )
        return ConditionalGap(islice(loader, count), noising)

    @property
    def _images(self) -> int:
        """Seen since the very beginning: the global position of the data."""
        return self.progress.step * self.config.batch_size

    def _due(self, every: int) -> bool:
        """At every multiple of `every` and at the last step; 0: at the last step alone."""
        return self.progress.step == self.config.steps or (every > 0 and self.progress.step % every == 0)

    def _gap_due(self) -> bool:
        return self.gap is not None and self._due(self.config.gap_every)

    def _to_read(self, running: "deque[tuple[int, Launched]]") -> Iterator[tuple[int, Launched]]:
        """Of the steps that are launched, those to wait for now: all, where something is to be done with the last."""
        config, every = self.config, ("log_every", "sample_every", "checkpoint_every", "ema_snapshot_every")
        settle = self.reads_at_once or self._gap_due()
        settle |= any(self._due(getattr(config, name)) for name in every)
        settle |= self.progress.step == self._began + 1  # the first line comes with the first step
        while len(running) > (0 if settle else 1):
            yield running.popleft()

    def _note(self, step: int, result: StepResult) -> None:
        progress = self.progress
        progress.meter.add(result)
        if result.problem is None:
            progress.skipped_in_a_row = 0
            return
        progress.skipped_in_a_row += 1
        message = f"step {step}: {result.problem}"
        if progress.skipped_in_a_row >= self.config.max_nonfinite:
            self.ranks.fail(
                f"{message}; {progress.skipped_in_a_row} steps in a row were skipped: look at these samples, "
                "or begin again with a lower optim.lr or train.precision fp32"
            )
        self.say(f"{message}; step skipped ({progress.skipped_in_a_row} in a row)")

    def _measure_gap(self) -> Row:
        if self.gap is None or not self._gap_due():
            return {}
        self.kept.update(self.progress.step, now=True)
        with self.kept.ema.applied_to(self.unet), evaluating(self.unet):
            gap, loss = self.gap.measure(self.unet, self.autocast)
        return {"conditional_gap": gap, "validation_loss": loss}

    def _sample(self, sampler: Sampler, log: RunLog | None) -> None:
        self.kept.update(self.progress.step, now=True)
        with self.kept.ema.applied_to(self.unet), evaluating(self.unet):
            sheet_CHW = sampler(self.unet, self.progress.step)
        if sheet_CHW is not None and log is not None:
            log.pictures("samples", sheet_CHW, self.progress.step)

    def _checkpoint(self, export: Export | None, log: RunLog | None) -> None:
        if log is not None:
            log.sync()
        facts = {"config": self.config_json, "position": self._images, "progress": asdict(self.progress)}
        self.kept.checkpoint(self.progress.step, facts | {"data": self.data})
        if export is not None:
            self.kept.export(export, {"step": self.progress.step, "images": self._images})

    def _eta(self, clock: Clock, stopper: Stopper) -> float:
        seconds = clock.eta(self.config.steps - self.progress.step)
        return seconds if stopper.seconds_left is None else max(0.0, min(seconds, stopper.seconds_left))

    def _result(self, reason: str | None) -> TrainResult:
        step, steps = self.progress.step, self.config.steps
        if step >= steps:
            reason = "all steps are done"
            self.say(f"{self.folder}: all {steps} steps are done")
        else:
            self.say(f"{self.folder}: {reason}; step {step} of {steps} is saved, run the same command again to go on")
        return TrainResult(step=step, images=self._images, finished=step >= steps, reason=reason or "")


def _silent(line: str) -> None:
    """Where the other ranks' reports go."""


@contextmanager
def evaluating(unet: nn.Module) -> Iterator[None]:
    """Eval mode and no gradients inside the block; at its end whole parameters that were gathered are freed again.

    Nothing is compiled: for a few batches of other shapes that would take longer than they do.
    """
    unet.eval()
    try:
        with torch.no_grad(), torch.compiler.set_stance("force_eager"):
            yield
    finally:
        unet.train()
        free_gathered(unet)
