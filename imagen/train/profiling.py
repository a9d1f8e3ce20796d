"""Write a trace of a few training steps, for chrome://tracing or Perfetto."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import profiler

from imagen.errors import UserError
from imagen.files import replacing
from imagen.train.ranks import Ranks

Span = tuple[int, int]  # first and last step


class Profiler:
    """Writes RUN/profile/steps-10-13-rank-0.json, one file per rank, after step 13.

        with Profiler(folder, (10, 13), ranks) as profiling:
            for step in ...:
                profiling.begin(step)

    A step lasts until the next one begins, so it includes logging, validation and checkpoints. The trace and its name
    only contain steps that this process trains.
    """

    def __init__(self, folder: Path, span: Span | None, ranks: Ranks, report: Callable[[str], None] = print):
        self.folder, self.span, self.ranks, self.report = folder, span, ranks, report
        self._profile: Any = None
        self._step = 0

    def __enter__(self) -> "Profiler":
        return self

    def __exit__(self, *exception: object) -> None:
        if self._profile is not None:
            self._profile.stop()

    def begin(self, step: int) -> None:
        """Start or stop the profiler, if `step` is the first of the span or follows its last."""
        self._step = step
        if self.span is None:
            return
        first, last = self.span
        if self._profile is not None:
            self._profile.step()
            if step > last:
                self._profile.stop()
                self.span = self._profile = None
        elif first - 1 <= step <= last:
            self._start(max(first, step), last, warmup=int(step < first))
        elif step > last:
            self.report(f"steps {first} to {last} are not profiled: they were trained earlier")
            self.span = None

    def _start(self, first: int, last: int, warmup: int) -> None:
        """Start the profiler. warmup: number of steps before the first one, without recording."""

        def write(profile: Any) -> None:
            done = min(last, self._step)
            path = self.folder / f"steps-{first}-{done}-rank-{self.ranks.rank}.json"
            try:
                with replacing(path) as temporary:
                    profile.export_chrome_trace(str(temporary))
            except UserError as error:  # a failed trace must not stop training
                self.report(str(error))
                return
            self.report(f"wrote the profile of steps {first} to {done} to {self.folder}")

        activities = [profiler.ProfilerActivity.CPU]
        if self.ranks.device.type == "cuda":
            activities.append(profiler.ProfilerActivity.CUDA)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Profiler won't be using warmup")  # there is no earlier step
            schedule = profiler.schedule(wait=0, warmup=warmup, active=last - first + 1, repeat=1)
        self._profile = profiler.profile(activities=activities, schedule=schedule, on_trace_ready=write)
        self._profile.start()


def check_span(span: Span, steps: int) -> None:
    """Raise UserError unless `span` is within the run's steps."""
    if not 1 <= span[0] <= span[1] <= steps:
        raise UserError(f"--profile {span[0]}:{span[1]}: this run has steps 1 to {steps} (train.steps)")
