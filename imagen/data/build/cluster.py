"""The engine of `--engine ray`: items as a Ray Data set, a pool of actors that do them, results as they come.

Ray schedules, restarts workers that were killed and gives their items to them again; what is here says what a worker
takes, sees to it that it finds the files, and turns what goes wrong into one line.
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

_LOCAL_STORE = 100_000_000  # bytes for objects of a local instance: nothing but items and reports goes through it


@dataclass(frozen=True, kw_only=True)
class Ray:
    """An engine: workers on the Ray cluster that this process is connected to."""

    workers: int
    cpus: int = 1  # that each worker takes, and its threads
    gpus: int = 0
    attempts: int = 10  # at an item: one that kills its worker each time must not do so for ever, Ray's default

    def map(self, make: Callable[[], Work], items: Sequence[Any], witness: Path) -> Iterator[tuple[int, Any]]:
        """As `Engine.map`. Items of killed workers and lost machines are done again, `attempts` times at most."""
        ray = _ray()
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = context.print_on_execution_start = False  # the caller has a bar of its own
        logging.getLogger("ray.data").setLevel(logging.CRITICAL)
        if not items:
            return
        # JSON: as columns, dicts of several items would be made to have the same keys. A block for each item: it is
        # the unit that is scheduled and done again.
        rows = [{"number": number, "item": json.dumps(item)} for number, item in enumerate(items)]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Ray 2.64 takes the limits of retries away, hence the extra's upper bound
            done = ray.data.from_items(rows, override_num_blocks=len(rows)).map(
                _Worker,
                fn_constructor_args=(make, self.cpus, _Place(Path.cwd(), witness.absolute(), _digest(witness))),
                # One item at a time: none waits at one worker while another one is idle.
                compute=ray.data.ActorPoolStrategy(size=min(self.workers, len(items)), max_tasks_in_flight_per_actor=1),
                num_cpus=None if self.gpus else self.cpus,
                num_gpus=self.gpus or None,
                max_restarts=-1,
                max_task_retries=self.attempts - 1,
            )
        try:
            with closing(iter(done.iter_rows())) as results:  # ends the workers, whatever happens
                for row in results:
                    if row["error"] is not None:
                        where = "" if row["host"] == socket.gethostname() else f"on {row['host']}: "
                        raise UserError(where + row["error"])
                    yield row["number"], json.loads(row["result"])
        except ray.exceptions.RayActorError as error:
            if missing := re.search(r"No module named '([\w.]+)'", str(error)):
                raise UserError(
                    f"a machine of the Ray cluster has no {missing[1]}; install imagen and all else as on this one"
                ) from None
            raise UserError(
                f"workers were killed each of {self.attempts} times that they did the same work (out of memory?); "
                "run the same command with fewer --workers to go on"
            ) from None


@contextmanager
def connected(address: str | None = None, workers: int | None = None) -> Iterator[None]:
    """Connected to the Ray cluster at `address`, else that of RAY_ADDRESS, else one that is started on this machine.

    The latter has `workers` CPUs (default: one for each core) and ends with the block. A connection that is there
    already is used, and kept. Raises UserError if Ray is not installed or there is no cluster.
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
        _check(address)
    try:
        ray.init(address, **settings)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise UserError(f"cannot use the Ray cluster {address}: {str(error).splitlines()[0]}") from None
    try:
        yield
    finally:
        ray.shutdown()


def builders(workers: int | None = None) -> Ray:
    """Workers of one CPU each; by default as many as the connected cluster has."""
    return Ray(workers=workers or max(1, int(_resources().get("CPU", 1))))


def encoders(workers: int | None = None, device: str | None = None) -> tuple[Ray, str]:
    """Workers with an encoder each, and the device that it runs on there: by default "cuda" if the cluster has GPUs.

    By default there is one for each GPU, or, on CPUs, one for each machine: an encoder may need much of its memory.
    CPUs are shared out evenly.
    """
    found, ray = _resources(), _ray()
    if device not in (None, "cpu", "cuda"):
        raise UserError(f"--device {device}: with --engine ray it is cpu or cuda; Ray says which GPU")
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
    """The module; UserError if it is not installed."""
    try:
        import ray
        import ray.data
    except ImportError:
        raise missing("--engine ray needs Ray Data", "ray") from None
    return ray


def _check(address: str) -> None:
    """UserError where nothing listens: Ray itself would try for minutes."""
    if address.startswith("ray://"):
        raise UserError(
            f"--ray-address {address}: Ray Client is not supported; run the command on a machine of the cluster, "
            "or with `ray job submit`"
        )
    host, _, port = address.rpartition(":")
    if not port.isdecimal():  # "auto", or what Ray shall complain of
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(
            f"no Ray cluster answers at {address} ({reason}); start one, or leave --ray-address out"
        ) from None


@dataclass(frozen=True)
class _Place:
    """What a worker must find on its machine."""

    folder: Path  # where relative paths begin
    witness: Path
    digest: bytes

    def enter(self) -> None:
        with suppress(OSError):  # not there: then paths must be absolute
            os.chdir(self.folder)
        if _digest(self.witness) != self.digest:
            raise UserError(
                f"{self.witness} is not what it is where the command runs; all machines of a Ray cluster must see "
                "the same files, under the same paths: use storage that they share"
            )


class _Worker:
    """The actor: makes what does the work when the first item comes, as Ray gives up where making an actor fails."""

    def __init__(self, make: Callable[[], Work], threads: int, place: _Place):
        self.make, self.threads, self.place = make, threads, place
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
            self.place.enter()
            self.work = self.make()
        return self.work(item)


def _digest(file: Path) -> bytes:
    try:
        return hashlib.blake2b(file.read_bytes(), digest_size=16).digest()
    except OSError:
        return b""
