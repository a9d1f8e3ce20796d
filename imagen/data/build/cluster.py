"""Run the items of a job on a Ray cluster (`--engine ray`), as a Ray Data dataset mapped by a pool of actors.

Ray schedules the items, restarts killed workers and retries their items. This module sets each worker's resources,
checks that it sees the same files, and turns failures into one-line errors.
"""

import hashlib
import json
import logging
import os
import re
import socket
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from imagen.data.build.engines import Work
from imagen.distribution import missing
from imagen.errors import UserError

_LOCAL_STORE = 100_000_000  # bytes of a local instance's object store, which holds only items and reports


@dataclass(frozen=True, kw_only=True)
class Ray:
    """Run items in workers on the Ray cluster that this process is connected to."""

    workers: int
    cpus: int = 1  # per worker; also its number of threads
    gpus: int = 0  # per worker
    attempts: int = 10  # per item; Ray's default would retry an item that kills its worker forever

    def map(self, make: Callable[[], Work], items: Sequence[Any], probe_file: Path) -> Iterator[tuple[int, Any]]:
        """Map as `Engine.map` does; items of killed workers and lost machines are tried at most `attempts` times."""
        ray = _ray()
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = context.print_on_execution_start = False  # the caller shows a progress bar
        logging.getLogger("ray.data").setLevel(logging.CRITICAL)
        if not items:
            return
        # JSON, because Ray would give the dicts of all items the same keys. One block per item, because a block is
        # the unit of scheduling and retries.
        rows = [{"number": number, "item": json.dumps(item)} for number, item in enumerate(items)]
        shared = SharedFiles(Path.cwd(), probe_file.absolute(), file_digest(probe_file))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Ray 2.64 removes the retry limits, hence the extra's upper bound
            done = ray.data.from_items(rows, override_num_blocks=len(rows)).map(
                _Worker,
                fn_constructor_args=(make, self.cpus, shared),
                # One item at a time, so that none is queued at a busy worker while another is idle.
                compute=ray.data.ActorPoolStrategy(size=min(self.workers, len(items)), max_tasks_in_flight_per_actor=1),
                num_cpus=None if self.gpus else self.cpus,
                num_gpus=self.gpus or None,
                max_restarts=-1,
                max_task_retries=self.attempts - 1,
            )
        try:
            with closing(iter(done.iter_rows())) as results:  # closing it ends the workers
                for row in results:
                    if row["error"] is not None:
                        where = "" if row["host"] == socket.gethostname() else f"on {row['host']}: "
                        raise UserError(where + row["error"])
                    yield row["number"], json.loads(row["result"])
        except ray.exceptions.RayActorError as error:
            if missing := re.search(r"No module named '([\w.]+)'", str(error)):
                raise UserError(
                    f"a machine of the Ray cluster has no {missing[1]}; install the same packages there as here"
                ) from None
            raise UserError(
                f"workers were killed in all {self.attempts} attempts at the same work (out of memory?); "
                "run the same command with fewer --workers to resume"
            ) from None


@contextmanager
def connected(address: str | None = None, workers: int | None = None) -> Iterator[None]:
    """Connect to the Ray cluster at `address`, or at RAY_ADDRESS, or start one on this machine.

    A started cluster has `workers` CPUs (default: one per core) and ends with the block. An existing connection is
    reused and left open. Raises UserError if Ray is not installed or no cluster answers.
    """
    ray = _ray()
    if ray.is_initialized():
        yield
        return
    address = address or os.environ.get("RAY_ADDRESS") or "local"
    settings: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.CRITICAL}
    if address == "local":
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        settings |= {"num_cpus": workers or os.cpu_count(), "object_store_memory": _LOCAL_STORE}
        settings |= {"include_dashboard": False}
    else:
        check_address(address)
    try:
        ray.init(address, **settings)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise UserError(f"cannot use the Ray cluster {address}: {str(error).splitlines()[0]}") from None
    try:
        yield
    finally:
        ray.shutdown()


def builders(workers: int | None = None) -> Ray:
    """Return an engine with workers of one CPU each (default: one per CPU of the connected cluster)."""
    return Ray(workers=workers or max(1, int(_resources().get("CPU", 1))))


def encoders(workers: int | None = None, device: str | None = None) -> tuple[Ray, str]:
    """Return an engine for text encoders, and the device that they run on (default: "cuda" if the cluster has GPUs).

    workers: default one per GPU, or on CPUs one per machine, because an encoder may need much of its memory. CPUs are
    divided evenly. Raises UserError if `device` is neither "cpu" nor "cuda", or the cluster has no GPU.
    """
    found, ray = _resources(), _ray()
    if device not in (None, "cpu", "cuda"):
        raise UserError(f"--device {device}: with --engine ray it is cpu or cuda; Ray chooses the GPU")
    device = device or ("cuda" if found.get("GPU") else "cpu")
    if device == "cuda":
        if not found.get("GPU"):
            raise UserError("--device cuda: the Ray cluster has no GPU")
        return Ray(workers=workers or int(found["GPU"]), gpus=1), device
    machines = [int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"]]
    machines = [cpus for cpus in machines if cpus] or [1]
    workers = workers or len(machines)
    return Ray(workers=workers, cpus=max(1, min(sum(machines) // workers, *machines))), device


def _resources() -> dict[str, float]:
    return _ray().cluster_resources()


def _ray() -> Any:
    """Import Ray. Raises UserError if it is not installed."""
    try:
        import ray
        import ray.data
    except ImportError:
        raise missing("--engine ray needs Ray Data", "ray") from None
    return ray


def check_address(address: str) -> None:
    """Raise UserError if nothing listens at `address`; Ray itself would retry for minutes."""
    if address.startswith("ray://"):
        raise UserError(
            f"--ray-address {address}: Ray Client is not supported; run the command on a machine of the cluster, "
            "or with `ray job submit`"
        )
    host, _, port = address.rpartition(":")
    if not port.isdecimal():  # "auto", or an address that Ray rejects
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"no Ray cluster answers at {address} ({reason}); start one, or omit --ray-address") from None


@dataclass(frozen=True)
class SharedFiles:
    """Files that must be the same for a worker as for the driver."""

    folder: Path  # working directory, to which relative paths refer
    probe_file: Path
    digest: bytes

    def enter(self) -> None:
        with suppress(OSError):  # the folder does not exist there, so paths must be absolute
            os.chdir(self.folder)
        if file_digest(self.probe_file) != self.digest:
            raise UserError(
                f"{self.probe_file} differs from the same file where the command runs; all machines of a Ray cluster "
                "must see the same files under the same paths: use shared storage"
            )


class _Worker:
    """A Ray actor that calls `make` at its first item, because Ray gives up if an actor's constructor fails."""

    def __init__(self, make: Callable[[], Work], threads: int, shared: SharedFiles):
        self.make, self.threads, self.shared = make, threads, shared
        self.work: Work | None = None

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        result, error = None, None
        try:
            result = json.dumps(self._done(json.loads(row["item"])))
        except UserError as mistake:
            error = str(mistake)
        return {"number": row["number"], "result": result, "error": error, "host": socket.gethostname()}

    def _done(self, item: Any) -> Any:
        if self.work is None:
            import torch

            torch.set_num_threads(self.threads)
            self.shared.enter()
            self.work = self.make()
        return self.work(item)


def file_digest(file: Path) -> bytes:
    try:
        return hashlib.blake2b(file.read_bytes(), digest_size=16).digest()
    except OSError:
        return b""
