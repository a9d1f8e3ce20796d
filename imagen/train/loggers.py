"""Send metrics and sample grids to TensorBoard, Weights & Biases or MLflow: one callback for each.

`train.loggers` names them. Addresses, keys and projects come from each package's own environment variables. Without
them, W&B does what `wandb login` or `wandb offline` has set up, and MLflow writes into RUN/mlflow.db and RUN/mlflow.
"""

import importlib.util
import os
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from torch import Tensor

from imagen import distribution
from imagen.errors import UserError
from imagen.files import cannot_write, read_json, write_json
from imagen.train.callbacks import Callback
from imagen.train.config import LoggerName
from imagen.train.meter import Row
from imagen.train.progress import TrainResult
from imagen.train.setup import TrainingRun

if TYPE_CHECKING:
    pass

PROJECT = "imagen"  # of W&B, and the experiment of MLflow, where the environment names none
_PARAMETERS_AT_ONCE = 100  # limit of MLflow
_LONGEST_PARAMETER = 500  # characters; the limit of old servers


def check_loggers(names: Sequence[LoggerName]) -> None:
    """Raise UserError, saying what to install, if a package is missing.

    TensorBoard is the default: it is used where it is installed, and never required.
    """
    for name in names:
        if name != "tensorboard" and not _is_installed(name):
            raise UserError(
                f"train.loggers names {name}, which is not installed; run: pip install '{distribution.NAME}[{name}]'"
            )


def build_loggers(names: Sequence[LoggerName]) -> list[Callback]:
    """Return the callbacks for the first rank."""
    kinds: dict[LoggerName, Callable[[], Callback]] = {"tensorboard": TensorBoard, "wandb": WandB, "mlflow": MLflow}
    return [kinds[name]() for name in dict.fromkeys(names) if _is_installed(name)]


def _is_installed(name: LoggerName) -> bool:
    return importlib.util.find_spec(name) is not None


class TensorBoard(Callback):
    """Writes RUN/tensorboard. A full disk ends training, as it does for RUN/metrics.jsonl."""

    def on_start(self, run: TrainingRun) -> None:
        from torch.utils.tensorboard import SummaryWriter  # heavy, and nothing else here needs it

        self._folder = run.folder / "tensorboard"
        with self._errors():
            self._board: SummaryWriter = SummaryWriter(str(self._folder), purge_step=run.step + 1)

    def on_row(self, run: TrainingRun, step: int, row: Row) -> None:
        with self._errors():
            for name, value in row.items():
                if value is not None:
                    self._board.add_scalar(name, value, step)

    def on_image(self, run: TrainingRun, step: int, name: str, image_CHW: Tensor) -> None:
        with self._errors():
            self._board.add_image(name, image_CHW, step)

    def on_end(self, run: TrainingRun, result: TrainResult | None) -> None:
        with self._errors():
            self._board.close()

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """Turn errors of TensorBoard's writer thread, which it raises at a later call, into UserErrors."""
        try:
            yield
        except OSError as error:
            raise cannot_write(self._folder, error) from error


class Tracker(Callback):
    """Base of the loggers that a server may be behind.

    An error when a run starts is a UserError. A later one does not end training: it is reported, and logging stops.
    A resumed run goes on in the same run of the tracker, whose id RUN/loggers.json has.
    """

    name: LoggerName

    def open(self, run: TrainingRun, known: str | None) -> str:
        """Begin a run of the tracker, or resume the `known` one; return its id."""
        raise NotImplementedError

    def write_row(self, step: int, row: dict[str, float]) -> None:
        """Log the metrics of a step."""
        raise NotImplementedError

    def write_image(self, step: int, name: str, image_CHW: Tensor) -> None:
        """Log an image, uint8 [3, H, W]."""
        raise NotImplementedError

    def close(self, failed: bool) -> None:
        """Send what is left. failed: training ended with an exception."""
        raise NotImplementedError

    def on_start(self, run: TrainingRun) -> None:
        self._broken, path = False, run.folder / "loggers.json"
        ids = read_json(path) if path.exists() else {}
        known = ids.get(self.name) if isinstance(ids, dict) else None
        try:
            identity = self.open(run, known if isinstance(known, str) else None)
        except Exception as error:  # each package has its own, and those of HTTP
            raise UserError(f"train.loggers: {self.name} cannot start: {_first_line(error)}") from error
        write_json(path, {**(ids if isinstance(ids, dict) else {}), self.name: identity})

    def on_row(self, run: TrainingRun, step: int, row: Row) -> None:
        values = {name: float(value) for name, value in row.items() if value is not None}
        self._try(run, lambda: self.write_row(step, values))

    def on_image(self, run: TrainingRun, step: int, name: str, image_CHW: Tensor) -> None:
        self._try(run, lambda: self.write_image(step, name, image_CHW))

    def on_end(self, run: TrainingRun, result: TrainResult | None) -> None:
        self._try(run, lambda: self.close(failed=result is None))

    def _try(self, run: TrainingRun, function: Callable[[], None]) -> None:
        if self._broken:
            return
        try:
            function()
        except Exception as error:
            self._broken = True
            run.report(f"{self.name} stopped logging: {_first_line(error)}; {run.folder}/metrics.jsonl has all metrics")


class WandB(Tracker):
    """Logs to Weights & Biases: https://wandb.ai, a server of one's own, or RUN/wandb with WANDB_MODE=offline."""

    name = "wandb"

    def open(self, run: TrainingRun, known: str | None) -> str:
        import wandb

        self._wandb = wandb
        self._run: Any = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=run.folder.name,
            id=known or secrets.token_hex(4),
            resume="allow",
            dir=str(run.folder),
            config=run.config_json,
            settings=wandb.Settings(console="off"),  # it would copy what the terminal shows
        )
        return self._run.id

    def write_row(self, step: int, row: dict[str, float]) -> None:
        self._run.log(row, step=step)

    def write_image(self, step: int, name: str, image_CHW: Tensor) -> None:
        self._run.log({name: self._wandb.Image(image_CHW.permute(1, 2, 0).numpy())}, step=step)

    def close(self, failed: bool) -> None:
        self._run.finish(exit_code=int(failed))


class MLflow(Tracker):
    """Logs to the server of MLFLOW_TRACKING_URI or, without it, to the database RUN/mlflow.db, images to RUN/mlflow."""

    name = "mlflow"

    def open(self, run: TrainingRun, known: str | None) -> str:
        from mlflow import MlflowClient
        from mlflow.entities import Param

        uri, folder = os.environ.get("MLFLOW_TRACKING_URI"), run.folder.resolve()
        images = None if uri else (folder / "mlflow").as_uri()
        self._store: Any = MlflowClient(tracking_uri=uri or f"sqlite:///{folder / 'mlflow.db'}")
        if known is not None:
            self._id = self._store.get_run(known).info.run_id
            self._store.update_run(self._id, status="RUNNING")
            return self._id
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        found = self._store.get_experiment_by_name(name)
        if found is None:
            experiment = self._store.create_experiment(name, artifact_location=images)
        else:
            experiment = found.experiment_id
        self._id = self._store.create_run(experiment, run_name=run.folder.name).info.run_id
        values = [Param(key, str(value)[:_LONGEST_PARAMETER]) for key, value in _leaves(run.config_json)]
        for begin in range(0, len(values), _PARAMETERS_AT_ONCE):
            self._store.log_batch(self._id, params=values[begin : begin + _PARAMETERS_AT_ONCE])
        return self._id

    def write_row(self, step: int, row: dict[str, float]) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        self._store.log_batch(self._id, metrics=[Metric(name, value, now, step) for name, value in row.items()])

    def write_image(self, step: int, name: str, image_CHW: Tensor) -> None:
        self._store.log_image(self._id, image_CHW.permute(1, 2, 0).numpy(), key=name, step=step)

    def close(self, failed: bool) -> None:
        self._store.set_terminated(self._id, "FAILED" if failed else "FINISHED")


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the path and value of each field of a config; a list is one value."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _leaves(item, f"{path}.{key}" if path else key)
    else:
        yield path, value


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
