"""Reasons to stop before the last step: a signal, a time budget, or a request."""

import signal
import threading
import time
from types import FrameType
from typing import Any

from imagen.system import STOP_SIGNALS

SIGNALLED = "stopped by"


class Stopper:
    """Holds the reason to stop, to be read between two steps; `reason` is None while training continues.

        with Stopper(minutes) as stopper:
            while stopper.reason is None: ...

    SIGTERM, SIGUSR1 (Slurm's warning, see docs/howto/scale.md) and the first SIGINT (Ctrl-C) ask for a stop after the
    current step; a second Ctrl-C interrupts at once.
    """

    def __init__(self, minutes: float | None = None, began: float | None = None):
        """Start the time budget: `minutes` of wall time since `began` (a `time.monotonic()`; default: now)."""
        self._deadline = None if minutes is None else (began or time.monotonic()) + 60 * minutes
        self._minutes = minutes
        self._reason: str | None = None
        self._former: dict[int, Any] = {}

    def request(self, reason: str) -> None:
        """Stop after the current step or the next, on all ranks. reason: reported to the user."""
        self._reason = reason

    @property
    def reason(self) -> str | None:
        if self._reason:
            return self._reason
        if self.seconds_left is not None and self.seconds_left <= 0:
            return f"{self._minutes:.3g} minutes are over"
        return None

    @property
    def seconds_left(self) -> float | None:
        """Remaining time budget; None without a budget."""
        return None if self._deadline is None else self._deadline - time.monotonic()

    def __enter__(self) -> "Stopper":
        if threading.current_thread() is threading.main_thread():  # elsewhere Python allows no handlers
            for number in STOP_SIGNALS:
                self._former[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._reason = f"{SIGNALLED} {signal.Signals(number).name}"
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)
