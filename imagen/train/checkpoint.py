"""Checkpoints that are whole or not there, and the folder that keeps the last few."""

import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from imagen.errors import UserError
from imagen.files import replacing

State = dict[str, Any]  # tensors, numbers, strings, and dicts and lists of them


def save(path: Path, state: State) -> None:
    """Write `state` to `path` atomically: written beside it, synced to disk, renamed.

    Raises UserError if it cannot be written (a full disk, say); what `path` held before is then untouched.
    """
    with replacing(path) as temporary, open(temporary, "wb") as file:
        try:
            torch.save(state, file)
            file.flush()
        except RuntimeError as error:  # torch's zip writer turns the file's OSError into this
            cause = error.__context__
            raise cause if isinstance(cause, OSError) else OSError(str(error).splitlines()[0]) from error


def load(path: Path) -> State:
    """Read what `save` wrote, on the CPU, without running any code in it. Raises ValueError if it is damaged.

    torch.load does not look at checksums; the file is a zip with a CRC for each tensor, so we do.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        if damaged:
            raise ValueError(f"checksum of {damaged} is wrong")
        return torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, zipfile.BadZipFile, RuntimeError, EOFError) as error:
        raise ValueError(str(error).splitlines()[0] if str(error) else type(error).__name__) from error


class CheckpointFolder:
    """RUN/checkpoints: `step-00001000.pt` and so on, the last `keep` of them."""

    def __init__(self, folder: Path, keep: int):
        self.folder = folder
        self.keep = max(1, keep)

    def paths(self) -> list[Path]:
        """Checkpoints, oldest first."""
        found = self.folder.glob("step-*.pt")
        return sorted(path for path in found if re.fullmatch(r"step-\d{8,}\.pt", path.name))

    def save(self, step: int, state: State) -> Path:
        path = self.folder / f"step-{step:08d}.pt"
        save(path, state)
        for old in (*self.paths()[: -self.keep], *self.folder.glob(".step-*.tmp")):  # .tmp: of a killed process
            old.unlink()
        return path

    def load_latest(self, say: Callable[[str], None] = print) -> State | None:
        """The newest checkpoint that can be read; None where there is none yet.

        Damaged ones on the way are set aside as `*.pt.damaged` and named through `say`.
        Raises UserError if there are checkpoints and none can be read.
        """
        damaged: list[tuple[Path, str]] = []
        for path in reversed(self.paths()):
            try:
                state = load(path)
            except ValueError as error:
                damaged.append((path, str(error)))
                continue
            for bad, why in damaged:
                bad.rename(f"{bad}.damaged")
                say(f"{bad} is damaged ({why}): set aside; going on from {path.name}")
            return state
        if damaged:
            path, why = damaged[0]
            raise UserError(
                f"no checkpoint in {self.folder} can be read ({path.name}: {why}); move it away to start again"
            )
        return None
