"""Hide differences between operating systems: file locks, memory use, existence of processes, signals.

POSIX has `fcntl` and `resource`, Windows `msvcrt`. Each is imported if available.
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

# Request a stop after the current step. Slurm sends SIGUSR1 as a warning.
STOP_SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGUSR1", "SIGINT") if hasattr(signal, name))


def lock(file: IO, *, wait: bool = False, shared_with_forks: bool = False) -> bool:
    """Lock an open file exclusively, until it is closed or the process ends. Return False if another process has it.

    Returns True without locking if the file system or the operating system does not support locks.
    wait: until the lock is free. shared_with_forks: forked children also hold the lock (POSIX only).
    """
    if fcntl is not None:
        # With lockf a forked loader does not hold the lock of a run whose trainer was killed; with flock it does.
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
    """Return the peak resident memory of this process in bytes; 0 if unknown."""
    if resource is None:
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def resident_bytes() -> int:
    """Return the resident memory of this process in bytes; its peak except on Linux."""
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


HOST_ID = _host_id()  # the scope of process ids: host name and PID namespace (container)


def is_alive(pid: int) -> bool:
    """Return whether a process with this id exists on this host. Always True on Windows: `os.kill` would end it."""
    if os.name == "nt":
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True
    return True
