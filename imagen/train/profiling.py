"""Trace a few steps, for chrome://tracing or Perfetto."""

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
    """Writes RUN/profile/steps-10-13-rank-0.json, one per rank, when step 13 is over.

        with Profiler(folder, (10, 13), ranks) as profiling:
            for step in ...:
                profiling.begin(step)

    A step lasts until the next one begins, and includes logging, validation and checkpoints. Steps that this process
    does not train are missing in the trace, and in its name.
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
            self.report(f"steps {first} to {last} were trained before: they are not profiled")
            self.span = None

    def _start(self, first: int, last: int, warmup: int) -> None:
        """Start the profiler. warmup: steps before the first one, in which the profiler settles."""

        def write(profile: Any) -> None:
            done = min(last, self._step)
            path = self.folder / f"steps-{first}-{done}-rank-{self.ranks.rank}.json"
            try:
                with replacing(path) as temporary:
                    profile.export_chrome_trace(str(temporary))
            except UserError as error:  # no reason to stop training
                self.report(str(error))
                return
            self.report(f"steps {first} to {done} are profiled: see {self.folder}")

        activities = [profiler.ProfilerActivity.CPU]
        if self.ranks.device.type == "cuda":
            activities.append(profiler.ProfilerActivity.CUDA)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Profiler won't be using warmup")  # there is no step before
            schedule = profiler.schedule(wait=0, warmup=warmup, active=last - first + 1, repeat=1)
        self._profile = profiler.profile(activities=activities, schedule=schedule, on_trace_ready=write)
        self._profile.start()


def check_span(span: Span, steps: int) -> None:
    """Raise UserError unless the run has these steps."""
    if not 1 <= span[0] <= span[1] <= steps:
        raise UserError(f"--profile {span[0]}:{span[1]}: this run has steps 1 to {steps} (train.steps)")
