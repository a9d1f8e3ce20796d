"""What differs between operating systems: locks of files, the memory of a process, whether a process lives, signals.

POSIX has `fcntl` and `resource`, Windows `msvcrt`; each is imported where it is, and what neither has is left out.
"""

import os
import signal
import socket
import sys
from contextlib import suppress
from typing import IO

try:
    import fcntl
except ImportError:
    fcntl = None  # type: ignore[assignment]
try:
    import msvcrt
except ImportError:
    msvcrt = None  # type: ignore[assignment]
try:
    import resource
except ImportError:
    resource = None  # type: ignore[assignment]

# Ask for a stop after the current step. SIGUSR1 is Slurm's warning.
STOP_SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGUSR1", "SIGINT") if hasattr(signal, name))


def lock(file: IO, *, wait: bool = False, shared_with_forks: bool = False) -> bool:
    """Take the exclusive lock of an open file until it is closed or the process dies; False if another one has it.

    Where the file system has no locks, or the system none that are known here, the answer is True.
    wait: until it is free. shared_with_forks: a child made by fork keeps the lock alive, too (POSIX only).
    """
    if fcntl is not None:
        # lockf: a forked loader does not keep the lock of a run whose trainer was killed; flock: it does.
        take = fcntl.flock if shared_with_forks else fcntl.lockf
        try:
            take(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except (BlockingIOError, PermissionError):
            return False
        except OSError:
            return True
        return True
    if msvcrt is not None:
        file.seek(0)
        while True:
            try:
                msvcrt.locking(file.fileno(), msvcrt.LK_LOCK if wait else msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]
                return True
            except OSError:  # LK_LOCK gives up after ten seconds
                if not wait:
                    return False
    return True


def peak_resident_bytes() -> int:
    """Return the most bytes that this process has had in memory; 0 where the system does not say."""
    if resource is None:
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def resident_bytes() -> int:
    """Return the bytes that this process has in memory now; its peak where the system does not say (not Linux)."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError, AttributeError):
        return peak_resident_bytes()


def _host_id() -> str:
    namespace = ""
    with suppress(OSError):  # no /proc
        namespace = os.readlink("/proc/self/ns/pid").translate({ord(c): None for c in "pid:[]"})
    return f"{socket.gethostname()}/{namespace}"


HOST_ID = _host_id()  # where a process id means something: the machine, and there the container


def is_alive(pid: int) -> bool:
    """Whether a process of that number exists on this machine. True where asking could end it (Windows)."""
    if os.name == "nt":
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True
    return True
