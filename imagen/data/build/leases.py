"""Divide files among processes on several machines that share only a folder.

A lease is a small file beside the target, created with O_EXCL, so only one process can create it. It contains the
owner's id, and a heartbeat thread of the owner touches it every few seconds. A lease ends with its owner. On the same
machine that is detected at once, because the process no longer exists. On another machine it is detected when the
heartbeat stops. An advisory lock (flock, lockf) handles the first case better but not the second: many network file
systems do not support it, or grant it to every caller.

NOTE Leases avoid duplicate work; they do not guarantee exclusion. Two processes that take over the same abandoned
lease at the same moment, or a process that was suspended for minutes, write the same file twice. The content of a
target must therefore depend only on its inputs, and be written atomically (`imagen.files.replacing`).
"""

import glob
import os
import secrets
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from imagen.files import cannot_write
from imagen.system import HOST_ID, is_alive

BEAT = 10.0  # seconds between heartbeats
STALE = 120.0  # seconds without a heartbeat; network file systems may show it to other machines a minute late


def lease_path(target: Path) -> Path:
    return target.with_name(f".{target.name}.claim")


class Leases:
    """Acquire leases and detect abandoned ones.

    stale: seconds without a heartbeat after which another machine's lease counts as abandoned. They are measured with
        this process's clock, from the time it first reads the lease, so clocks of machines need not agree.
    beat: seconds between the heartbeats of this process.
    """

    def __init__(self, stale: float = STALE, beat: float = BEAT):
        self.stale, self.beat = stale, beat
        self._known: dict[Path, tuple[tuple[str, int], float]] = {}  # lease -> ((owner, heartbeat), first seen)

    @contextmanager
    def acquire(self, target: Path) -> Iterator[bool]:
        """Acquire the lease of `target` for the duration of the block; yield False if another process has it.

        Takes over the lease of a dead owner and removes that owner's temporary files. Raises UserError if the folder
        is not writable.
        """
        lease, owner = lease_path(target), f"{HOST_ID} {os.getpid()} {secrets.token_hex(8)}"
        try:
            mine = self._make(lease, owner) or (self._abandoned(lease, target) and self._make(lease, owner))
        except OSError as error:
            raise cannot_write(lease, error) from None
        if not mine:
            yield False
            return
        ended = threading.Event()
        heartbeat = threading.Thread(target=self._touch, args=(lease, owner, ended), daemon=True)
        heartbeat.start()
        try:
            yield True
        finally:
            ended.set()
            heartbeat.join()
            with suppress(OSError):
                if lease.read_text() == owner:  # otherwise another process has taken the lease over
                    lease.unlink()

    def remove_abandoned(self, target: Path) -> None:
        """Remove the lease of a process that was killed after it had written `target`."""
        with suppress(OSError):
            self._abandoned(lease_path(target), target)

    def _make(self, lease: Path, owner: str) -> bool:
        try:
            handle = os.open(lease, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
        except FileExistsError:
            return False
        try:
            with open(handle, "w") as file:  # closed at once, because network file systems write on close
                file.write(owner)
        except OSError:  # a full disk: others would wait for the owner of the empty lease
            lease.unlink(missing_ok=True)
            raise
        self._known.pop(lease, None)
        return True

    def _touch(self, lease: Path, owner: str, ended: threading.Event) -> None:
        while not ended.wait(self.beat):
            with suppress(OSError):  # a file server may be unreachable for a moment
                if lease.read_text() != owner:
                    return
                os.utime(lease)

    def _abandoned(self, lease: Path, target: Path) -> bool:
        """Remove the lease of a dead process; return whether the lease is free."""
        try:
            with open(lease) as file:  # opening it makes a network file system refresh its cached attributes
                owner, touched = file.read(), os.fstat(file.fileno()).st_mtime_ns
        except FileNotFoundError:  # released just now
            return True
        host, pid, *_ = [*owner.split(" "), "", ""]
        if host == HOST_ID and not is_alive(int(pid)):
            for left in glob.iglob(f".{glob.escape(target.name)}.{pid}-*.tmp", root_dir=target.parent):
                (target.parent / left).unlink(missing_ok=True)
        else:
            now = time.monotonic()
            state, since = self._known.setdefault(lease, ((owner, touched), now))
            if state != (owner, touched):
                self._known[lease] = ((owner, touched), now)
                return False
            # An empty lease was created just now, or its owner was killed before it could write its id.
            if now - since < (self.stale if owner else self.beat):
                return False
        lease.unlink(missing_ok=True)
        return True
