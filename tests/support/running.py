"""Run a command in this process, and check its exit code, time and memory."""

import os
import re
import resource
import signal
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from imagen.cli import main

MAX_SECONDS, MAX_GIB = 20, 2.0  # per command
_BARS = re.compile(r"%\||\[\d\d:\d\d<|\d+it \[")


class DeadlineExceeded(BaseException):
    """Raised when time is up. Not an Exception, so that no handler in the command catches it."""


def find_fault(arguments: Sequence[object]) -> str | None:
    """Run `imagen ARGUMENTS...`; return a description of what went wrong, or None.

    Exit code 0 is right, and so is 2 with exactly one line on stderr besides progress bars.
    """
    _reset_peak()
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        try:
            with _streams(out.fileno(), err.fileno()), _alarm():
                code = _code([str(argument) for argument in arguments])
        except DeadlineExceeded:
            return f"the command did not end within {MAX_SECONDS} s"
        err.seek(0)
        stderr = err.read().decode("utf-8", "replace")
    lines = [line for line in re.split(r"[\r\n]+", stderr) if line.strip() and not _BARS.search(line)]
    if code not in (0, 2) or "Traceback" in stderr:
        return f"exit code {code}: {stderr[-3000:]}"
    if code == 2 and (len(lines) != 1 or not lines[0].startswith("imagen: ")):
        return f"exit code 2 with {len(lines)} lines on stderr: {stderr[-3000:]}"
    if (peak := _peak()) > MAX_GIB:
        return f"the command took {peak:.1f} GiB ({lines})"
    return None


def _code(arguments: list[str]) -> int:
    try:
        main(arguments)
    except SystemExit as done:
        return int(done.code or 0)


@contextmanager
def _streams(*targets: int) -> Iterator[None]:
    """Redirect stdout and stderr to file descriptors, including the output of C libraries."""
    streams = (sys.stdout, sys.stderr)
    originals = [os.dup(number) for number in (1, 2)]
    for stream in streams:
        stream.flush()
    try:
        for target, number in zip(targets, (1, 2), strict=True):
            os.dup2(target, number)
        sys.stdout, sys.stderr = (open(n, "w", encoding="utf-8", closefd=False) for n in (1, 2))  # noqa: SIM115
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            with suppress(ValueError, OSError):
                stream.flush()
        sys.stdout, sys.stderr = streams
        for handle, number in zip(originals, (1, 2), strict=True):
            os.dup2(handle, number)
            os.close(handle)


@contextmanager
def _alarm() -> Iterator[None]:
    def raise_deadline(_number: int, _frame: object) -> None:
        raise DeadlineExceeded

    before = signal.signal(signal.SIGALRM, raise_deadline)
    signal.setitimer(signal.ITIMER_REAL, MAX_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _reset_peak() -> None:
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _peak() -> float:
    """Return the peak memory of this process in GiB since `_reset_peak`, or since its start if that had no effect."""
    with suppress(OSError, AttributeError):
        found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
        return int(found[1]) / 2**20  # type: ignore[index]
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


@contextmanager
def bounded_memory(gib: float = 6.0) -> Iterator[None]:
    """Limit further address space to `gib`, so that a runaway command cannot exhaust the machine."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    mapped = 0
    with suppress(OSError):
        mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    if mapped:
        resource.setrlimit(resource.RLIMIT_AS, (mapped + int(gib * 2**30), before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
