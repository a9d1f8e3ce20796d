"""Report progress to the user: lines and, on a terminal, a progress bar below them.

The first line appears within seconds. It shows that training works, its speed, and when the next line will appear.
After that there is a line per row of metrics, and at least one per minute.
"""

import sys
import threading
import time
from collections.abc import Callable
from typing import TextIO

from imagen.progress import progress_bar
from imagen.train.callbacks import Callback
from imagen.train.meter import Row
from imagen.train.progress import TrainResult
from imagen.train.setup import TrainingRun
from imagen.train.step import StepResult

PATIENCE = 4.0  # seconds until the first line, if the first step takes longer
SILENCE = 60.0  # maximum seconds between two lines, unless a step takes longer


class Console:
    """Lines and progress bar of a training loop; a context manager around the loop."""

    def __init__(
        self,
        report: Callable[[str], None],
        steps: int,
        *,
        log_every: int,
        began: int = 0,
        visible: bool = True,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ):
        """Create the bar, which appears on `stream` (default: stderr) if that is a terminal.

        report: receives lines. steps: number of steps of the whole run. began: completed steps. visible: False hides
        the bar.
        """
        self._report, self._steps, self._log_every, self._began = report, steps, log_every, began
        self._clock, self._last_line, self._first = clock, clock(), True
        stream = stream or sys.stderr
        self._bar = progress_bar(
            total=steps,
            initial=began,
            unit="step",
            file=stream,
            disable=not (visible and stream.isatty()),
            dynamic_ncols=True,
        )
        self._waiting = threading.Timer(PATIENCE, self._still_working)
        self._waiting.daemon = True

    def __enter__(self) -> "Console":
        self._waiting.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._waiting.cancel()
        self._bar.close()

    def line(self, text: str) -> None:
        """Print a line above the bar."""
        self._bar.clear()
        self._report(text)
        self._bar.refresh()
        self._last_line = self._clock()

    def stepped(self, step: int, result: StepResult, seconds_per_step: float, seconds_left: float) -> None:
        """Update the bar after a step, and print a line if one is due.

        seconds_per_step: mean of this process so far. seconds_left: estimated time until training ends.
        """
        self._waiting.cancel()
        loss = sum(result.losses) / len(result.losses)
        self._bar.set_postfix_str(f"loss {loss:.4f}", refresh=False)
        self._bar.update()
        if self._first:
            self._first = False
            self.line(f"step {step}: loss {loss:.4f}, {self._forecast(step, seconds_per_step, seconds_left)}")
        elif self._clock() - self._last_line >= SILENCE and self._bar.disable:
            pace = _pace(seconds_per_step)
            self.line(f"step {step}/{self._steps}  loss {loss:.4f}  {pace}  ETA {duration(seconds_left)}")

    def row(self, row: Row) -> None:
        """Print a row of metrics, including its `step`, as a line."""
        self.line(console_line(row, self._steps))

    def _forecast(self, step: int, seconds_per_step: float, seconds_left: float) -> str:
        pace, end = _pace(seconds_per_step), f"end of training in about {duration(seconds_left)}"
        if self._log_every == 0:
            return f"{pace}; {end}"
        following = -(-(step + 1) // self._log_every) * self._log_every
        wait = min((following - step) * seconds_per_step, SILENCE)
        return f"{pace}; next line in about {duration(wait)}, {end}"

    def _still_working(self) -> None:
        self.line(f"step {self._began + 1} takes longer than {PATIENCE:.0f} s; the next line follows when it is done")


class ConsoleProgress(Callback):
    """Reports the progress of a run to the user, on the first rank."""

    def on_start(self, run: TrainingRun) -> None:
        self._console = Console(run.report, run.config.steps, log_every=run.config.log_every, began=run.step)
        self._console.__enter__()

    def on_step(self, run: TrainingRun, step: int, result: StepResult) -> None:
        self._console.stepped(step, result, run.timer.seconds_per_step, run.seconds_left)

    def on_row(self, run: TrainingRun, step: int, row: Row) -> None:
        self._console.row({"step": step, **row})

    def on_end(self, run: TrainingRun, result: TrainResult | None) -> None:
        self._console.__exit__()


def console_line(row: Row, steps: int) -> str:
    """Format a row of metrics, including its `step`, as a line."""
    parts = [f"step {row['step']}/{steps}"]
    for name, form in (
        ("loss", "loss {:.4f}"),
        ("grad_norm", "grad {:.3f}"),
        ("lr", "lr {:.1e}"),
        ("conditional_gap", "gap {:+.5f}"),
        ("nonfinite", "skipped {}"),
        ("images_per_s", "{:.1f} images/s"),
        ("mfu", "MFU {:.1%}"),
        ("memory_gb", "{:.1f} GB"),
    ):
        if row.get(name) is not None:
            parts.append(form.format(row[name]))
    if row.get("data_wait") is not None:
        rank = row.get("data_wait_rank")
        parts.append(f"data {row['data_wait']:.0%}" + ("" if rank is None else f" (rank {rank})"))
    if row.get("slowest_by") is not None:
        parts.append(f"slowest rank {row['slowest_rank']} by {row['slowest_by']:.0%}")
    if (eta := row.get("eta_s")) is not None:
        parts.append(f"ETA {duration(eta)}")
    return "  ".join(parts)


def duration(seconds: float) -> str:
    """Format a duration: `3 d 4 h`, `1 h 20 min`, `5 min`, `12 s`."""
    minutes = round(seconds / 60)
    if seconds < 60:
        return f"{seconds:.0f} s"
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours < 24 else f"{hours // 24} d {hours % 24} h"


def _pace(seconds_per_step: float) -> str:
    if seconds_per_step < 0.1:
        return f"{1 / max(seconds_per_step, 1e-9):.0f} steps/s"
    return f"{seconds_per_step:.2g} s per step"
