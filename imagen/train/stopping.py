"""Stop training before the last step because of a signal, a time budget or a request."""

import signal
import threading
import time
from types import FrameType
from typing import Any

from imagen.system import STOP_SIGNALS

SIGNALLED = "stopped by"


class Stopper:
    """Stores the reason to stop, which the training loop reads between steps; None while training continues.

        with Stopper(minutes) as stopper:
            while stopper.reason is None: ...

    SIGTERM, SIGUSR1 (Slurm's warning, see docs/howto/scale.md) and the first SIGINT (Ctrl-C) request a stop after the
    current step; a second Ctrl-C interrupts immediately.
    """

    def __init__(self, minutes: float | None = None, began: float | None = None):
        """Start the time budget: `minutes` of wall time since `began` (a `time.monotonic()`; default: now)."""
        self._deadline = None if minutes is None else (began or time.monotonic()) + 60 * minutes
        self._minutes = minutes
        self._reason: str | None = None
        self._former: dict[int, Any] = {}

    def request(self, reason: str) -> None:
        """Request a stop on all ranks after the current step or the next one. reason: reported to the user."""
        self._reason = reason

    @property
    def reason(self) -> str | None:
        if self._reason:
            return self._reason
        if self.seconds_left is not None and self.seconds_left <= 0:
            return f"the time budget of {self._minutes:.3g} minutes is used up"
        return None

    @property
    def seconds_left(self) -> float | None:
        """Remaining seconds of the time budget; None without a budget."""
        return None if self._deadline is None else self._deadline - time.monotonic()

    def __enter__(self) -> "Stopper":
        if (
            threading.current_thread() is threading.main_thread()
        ):  # Python allows signal handlers in the main thread only
            for number in STOP_SIGNALS:
                self._former[number] = signal.signal(number, self._handle_signal)
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler)

    def _handle_signal(self, number: int, frame: FrameType | None) -> None:
        self._reason = f"{SIGNALLED} {signal.Signals(number).name}"
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)
