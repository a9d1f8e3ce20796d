"""Who writes which file, among processes that share a folder and nothing else.

A claim is a small file beside the one to be written, made with O_EXCL: of all processes, on whatever machines, one
makes it. It names its owner, who touches it every few seconds. It ends with its owner: on the same machine at once,
when that process is gone; elsewhere when nobody has touched it for a while. An advisory lock (flock, lockf) would do
the first better and the second not at all: many network file systems have none, or grant it to everybody.

NOTE claims save work, they protect nothing. Two processes that take over the same abandoned claim at the same moment,
or one that was suspended for minutes, write the same file twice. So what is written must be a function of its inputs
alone, and must appear under its name whole (`imagen.files.replacing`).
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

BEAT = 10.0  # seconds between touches
STALE = 120.0  # seconds without a touch; network file systems show a touch to others up to a minute late


def claim_path(target: Path) -> Path:
    return target.with_name(f".{target.name}.claim")


class Claims:
    """This process's view of the claims of one folder, or several.

    No clock is compared with another machine's: a claim is abandoned when this process has known it for `stale` seconds
    of its own clock, and it was not touched meanwhile. `beat`: seconds between touches of this process's own.
    """

    def __init__(self, stale: float = STALE, beat: float = BEAT):
        self.stale, self.beat = stale, beat
        self._known: dict[Path, tuple[tuple[str, int], float]] = {}  # claim -> (owner and touch, since when)

    @contextmanager
    def claimed(self, target: Path) -> Iterator[bool]:
        """Whether `target` is this process's to write until the block ends; False while it is another's.

        A claim whose owner is dead is taken over, and what that one left half-written is removed. UserError if the
        folder cannot be written.
        """
        claim, owner = claim_path(target), f"{HOST_ID} {os.getpid()} {secrets.token_hex(8)}"
        try:
            mine = self._make(claim, owner) or (self._abandoned(claim, target) and self._make(claim, owner))
        except OSError as error:
            raise cannot_write(claim, error) from None
        if not mine:
            yield False
            return
        ended = threading.Event()
        beating = threading.Thread(target=self._touch, args=(claim, owner, ended), daemon=True)
        beating.start()
        try:
            yield True
        finally:
            ended.set()
            beating.join()
            with suppress(OSError):
                if claim.read_text() == owner:  # else another one thought this process dead, and has it now
                    claim.unlink()

    def tidy(self, target: Path) -> None:
        """Remove the claim of a process that was killed after it had written `target`, if there is one."""
        with suppress(OSError):
            self._abandoned(claim_path(target), target)

    def _make(self, claim: Path, owner: str) -> bool:
        try:
            handle = os.open(claim, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
        except FileExistsError:
            return False
        with open(handle, "w") as file:  # closed at once: a network file system sends it off then
            file.write(owner)
        self._known.pop(claim, None)
        return True

    def _touch(self, claim: Path, owner: str, ended: threading.Event) -> None:
        while not ended.wait(self.beat):
            with suppress(OSError):  # a file server that is away for a moment
                if claim.read_text() != owner:
                    return
                os.utime(claim)

    def _abandoned(self, claim: Path, target: Path) -> bool:
        """Remove another process's claim if that one is dead. True: the claim is free."""
        try:
            with open(claim) as file:  # opened, not only asked for: else a network file system may answer from memory
                owner, touched = file.read(), os.fstat(file.fileno()).st_mtime_ns
        except FileNotFoundError:  # given back just now
            return True
        place, pid, *_ = [*owner.split(" "), "", ""]
        if place == HOST_ID and not is_alive(int(pid)):
            for left in glob.iglob(f".{glob.escape(target.name)}.{pid}-*.tmp", root_dir=target.parent):
                (target.parent / left).unlink(missing_ok=True)
        else:
            now = time.monotonic()
            state, since = self._known.setdefault(claim, ((owner, touched), now))
            if state != (owner, touched):
                self._known[claim] = ((owner, touched), now)
                return False
            # Without a name: made just now, or by one that was killed before it could write its name.
            if now - since < (self.stale if owner else self.beat):
                return False
        claim.unlink(missing_ok=True)
        return True
