"""Save and load checkpoints atomically, in the background, and sharded over ranks.

torch.distributed.checkpoint stores the tensors: every rank writes its part, and any number of ranks can read them,
however they are sharded. A checkpoint is a folder, `step-00001000`, with parts (`*.distcp`), the location of each
tensor in them (`.metadata`), and `state.json`. It is written under a temporary name and renamed when every rank is
done.
"""

import io
import itertools
import re
import shutil
import warnings
import zipfile
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import IO, Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta, TensorStorageMetadata
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions

from imagen.devices import set_up
from imagen.errors import UserError
from imagen.files import cannot_write, read_json, sync_folder, write_json
from imagen.train.checkpoint_metadata import read_checkpoint_metadata
from imagen.train.ranks import Ranks

# A single process needs no process group, but torch warns about its absence in the writer thread.
warnings.filterwarnings("ignore", message="torch.distributed is disabled, unavailable or uninitialized")

Tensors = dict[str, dict[str, Tensor]]  # by kind (model, ema, optimizer) and name
RunState = dict[str, Any]  # JSON: all of a run's state that is not a tensor


class CheckpointFolder:
    """RUN/checkpoints: the last `keep` checkpoints, and those at multiples of `keep_every` steps.

    All ranks call all methods together.
    """

    def __init__(self, folder: Path, keep: int, keep_every: int = 0, ranks: Ranks | None = None):
        self.folder = folder
        self.keep, self.keep_every = max(1, keep), keep_every
        self.ranks = ranks or Ranks()
        self._alone = self.ranks.world_size == 1
        # A separate group, because collectives of the writer thread must not mix with those of training.
        self._group = None if self._alone else dist.new_group(backend="gloo")
        self._saving: tuple[Path, Future] | None = None
        # GPU tensors are copied to pinned memory, which is several times faster; the next checkpoint reuses it.
        pinned = StagingOptions(use_pinned_memory=True, use_shared_memory=False, use_async_staging=False)
        self._stager = DefaultStager(pinned) if self.ranks.device.type == "cuda" else None

    def paths(self) -> list[Path]:
        """Return the complete checkpoints, oldest first."""
        return checkpoint_paths(self.folder)

    def save(self, step: int, tensors: Tensors, state: RunState, wait: bool = False) -> None:
        """Copy the tensors and write them in a background thread; with `wait`, return when they are written.

        Raises UserError if this checkpoint or the previous one cannot be written, for example on a full disk.
        """
        self.wait()
        path = self.folder / f"step-{step:08d}"
        temporary = path.with_name(f".{path.name}.tmp")
        self.ranks.on_first(lambda: self._clear(temporary))
        writer = _Writer(temporary, path, state, self._prune, self.ranks.device)
        future = dcp.async_save(
            tensors,
            storage_writer=writer,
            process_group=self._group,
            no_dist=self._alone,
            async_stager=self._stager,
        )
        assert isinstance(future, Future)  # some stagers return a pair
        self._saving = path, future
        if wait:
            self.wait()

    def wait(self) -> None:
        """Wait until the checkpoint in progress is on disk. Raises UserError like `save`."""
        if self._saving is None:
            return
        path, future = self._saving
        self._saving = None
        try:
            future.result()
        except (CheckpointException, OSError) as error:
            cause = _cause(error)
            raise cannot_write(path, cause if isinstance(cause, OSError) else OSError(str(cause))) from error

    def load_latest(self, tensors: Tensors, report: Callable[[str], None] = print) -> RunState | None:
        """Fill `tensors` in place from the newest readable checkpoint and return its state; None without checkpoints.

        Removes the kind "optimizer" from `tensors` if that checkpoint has none: it was saved before the first update,
        as when the first steps are skipped. Damaged newer checkpoints are renamed to `*.damaged` and reported. Raises
        UserError if there are checkpoints but none can be read; the content of `tensors` is then undefined.
        """
        damaged: list[tuple[Path, str]] = []
        for path in reversed(self.ranks.on_first(self.paths)):
            try:
                state = self.ranks.on_first(lambda path=path: _read_state(path))  # type: ignore[misc]
                updated = self.ranks.on_first(lambda path=path: _has_optimizer(path))  # type: ignore[misc]
                found = {kind: named for kind, named in tensors.items() if updated or kind != "optimizer"}
                load(path, found, group=self._group)
            except (UserError, ValueError) as error:
                damaged.append((path, str(error)))
                continue
            if not updated:
                tensors.pop("optimizer", None)
            for bad, why in damaged:
                name = self.ranks.on_first(lambda bad=bad: _set_aside(bad))  # type: ignore[misc]
                report(f"{bad} is damaged ({why}): renamed to {name}; resuming from {path.name}")
            return state
        if damaged:
            path, why = damaged[0]
            raise UserError(
                f"no checkpoint in {self.folder} can be read ({path.name}: {why}); move the folder away to start again"
            )
        return None

    def _clear(self, temporary: Path) -> None:
        for leftover in (*self.folder.glob(".step-*.tmp"), temporary):  # of a killed process
            shutil.rmtree(leftover, ignore_errors=True)
        try:
            temporary.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise cannot_write(temporary, error) from None

    def _prune(self) -> None:
        for path in self.paths()[: -self.keep]:
            if not (self.keep_every and int(path.name.removeprefix("step-")) % self.keep_every == 0):
                shutil.rmtree(path, ignore_errors=True)


def checkpoint_paths(folder: Path) -> list[Path]:
    """Return the complete checkpoints in `folder`, oldest first."""
    found = (path for path in folder.glob("step-*") if re.fullmatch(r"step-\d{8,}", path.name) and path.is_dir())
    return sorted(found, key=lambda path: int(path.name.removeprefix("step-")))


def _read_state(path: Path) -> RunState:
    """Read `state.json`. Raises UserError if it or the metadata of the tensors cannot be read."""
    try:
        read_checkpoint_metadata(path)  # read first: torch would print a traceback for a damaged one
    except (OSError, ValueError) as error:
        raise UserError(" ".join(str(error).split())) from None
    return read_json(path / "state.json")


def _has_optimizer(path: Path) -> bool:
    return any(name.startswith("optimizer.") for name in read_checkpoint_metadata(path).state_dict_metadata)


def _set_aside(path: Path) -> str:
    """Rename a damaged checkpoint and return its new name, which no earlier one of that step has."""
    names = itertools.chain([f"{path.name}.damaged"], (f"{path.name}.damaged-{n}" for n in itertools.count(2)))
    free = next(name for name in names if not path.with_name(name).exists())
    path.rename(path.with_name(free))
    return free


def load(path: Path, tensors: Tensors, group: dist.ProcessGroup | None = None) -> None:
    """Fill `tensors`, full or sharded, in place with the tensors of the same names in the checkpoint `path`.

    Executes nothing from the checkpoint. Raises ValueError if the checkpoint is damaged, lacks a tensor, or stores one
    with a different shape. With a process group, an error on one rank is raised on all of them.
    """
    try:
        reader, planner = _Reader(path), _TensorsOnly()
        dcp.load(tensors, storage_reader=reader, planner=planner, process_group=group, no_dist=group is None)
    except CheckpointException as error:
        cause = _cause(error)
        raise ValueError(str(cause).splitlines()[0] if str(cause) else type(cause).__name__) from error


def read(path: Path, kind: str) -> dict[str, Tensor]:
    """Read the full tensors of one kind, such as `ema`, in one process on the CPU, however they were sharded.

    Raises ValueError if the checkpoint is damaged.
    """
    try:
        stored = read_checkpoint_metadata(path).state_dict_metadata
    except OSError as error:
        raise ValueError(str(error)) from error
    tensors = {
        name.removeprefix(f"{kind}."): torch.empty(about.size, dtype=about.properties.dtype)
        for name, about in stored.items()
        if name.startswith(f"{kind}.") and isinstance(about, TensorStorageMetadata)
    }
    load(path, {kind: tensors})
    return tensors


class _Writer(dcp.FileSystemWriter):
    """Writes a checkpoint to `temporary`, and renames it to `path` when all ranks are done."""

    def __init__(
        self, temporary: Path, path: Path, state: RunState, after: Callable[[], None], device: torch.device
    ) -> None:
        super().__init__(temporary)
        self._device = device
        self._temporary, self._final, self._state, self._after = temporary, path, state, after

    def write_data(self, *arguments: Any) -> Any:
        """Write this rank's part in the background thread, after selecting this rank's GPU there."""
        set_up(self._device)
        return super().write_data(*arguments)

    def finish(self, metadata: Metadata, results: Any) -> None:
        """Commit the checkpoint: on the first rank only, after every rank has written its part."""
        super().finish(metadata, results)
        write_json(self._temporary / "state.json", self._state)
        old = self._final.with_name(f".{self._final.name}.old.tmp")
        if self._final.exists():  # if the run resumed from an older checkpoint, or had ended
            self._final.rename(old)
        self._temporary.rename(self._final)
        sync_folder(self._final.parent)
        shutil.rmtree(old, ignore_errors=True)
        self._after()


class _TensorsOnly(dcp.DefaultLoadPlanner):
    """Rejects entries stored as bytes, which torch would unpickle without restrictions."""

    def load_bytes(self, read_item: Any, value: io.BytesIO) -> None:
        raise ValueError(f"{read_item.dest_index.fqn} is stored as bytes, not as a tensor")


class _Reader(dcp.FileSystemReader):
    """Validates `.metadata` before reading, and verifies checksums."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        metadata = read_checkpoint_metadata(Path(self.path))
        metadata.storage_meta = metadata.storage_meta or StorageMeta()
        metadata.storage_meta.load_id = self.load_id
        return metadata

    def _slice_file(self, file: Any, sinfo: Any) -> IO[bytes]:
        """Return the bytes of one tensor. They are a zip archive, and torch.load does not verify its checksums."""
        data = io.BytesIO(super()._slice_file(file, sinfo).read())
        try:
            with zipfile.ZipFile(data) as archive:
                damaged = archive.testzip()
        except zipfile.BadZipFile as error:
            raise ValueError(f"{sinfo.relative_path}: {error}") from None
        if damaged:
            raise ValueError(f"{sinfo.relative_path}: the checksum of {damaged} is wrong")
        data.seek(0)
        return data


def _cause(error: BaseException) -> BaseException:
    """Return a rank's original error from the exception that torch raises."""
    if isinstance(error, CheckpointException) and error.failures:
        failure = next(iter(error.failures.values()))
        error = failure[0] if isinstance(failure, tuple) else failure
    # torch's zip writer converts the file's OSError to a RuntimeError.
    return error.__context__ if isinstance(error.__context__, OSError) else error
