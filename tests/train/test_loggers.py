"""`train.loggers`: W&B and MLflow get the rows of metrics.jsonl and the sample grids, and never end a run."""

import importlib.util
import json
import sys
import types
from dataclasses import dataclass
from importlib.machinery import ModuleSpec

import pytest
import torch
from toy import experiment, train_quietly

from imagen.errors import UserError
from imagen.train.callbacks import Callback
from imagen.train.loggers import build_loggers, check_loggers

IMAGE = torch.arange(3 * 8 * 10, dtype=torch.uint8).reshape(3, 8, 10)


class Sheet(Callback):
    """Makes an image at the last step, as the sample grid does."""

    every = 0

    def on_interval(self, run, step):
        run.log_image("samples", IMAGE)


def train(shards, run, *loggers, steps=6, **options):
    what = experiment(steps=steps, loggers=loggers)
    return train_quietly(what, shards, run, callbacks=[Sheet()], **options)


def metrics(run):
    """The rows of metrics.jsonl without null: step to values."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {row.pop("step"): {name: value for name, value in row.items() if value is not None} for row in rows}


def package(monkeypatch, name, **members):
    """Install a stand-in for a package."""
    module = types.ModuleType(name)
    module.__spec__ = ModuleSpec(name, None)
    vars(module).update(members)
    monkeypatch.setitem(sys.modules, name, module)
    return module


class FakeRun:
    def __init__(self, options):
        self.id, self.rows, self.images, self.ended, self.fails = options["id"], {}, {}, None, False

    def log(self, values, step):
        if self.fails:
            raise ConnectionError("the server is gone\nfor long")
        for name, value in values.items():
            (self.rows if isinstance(value, float) else self.images).setdefault(step, {})[name] = value

    def finish(self, exit_code):
        self.ended = exit_code


@pytest.fixture
def wandb(monkeypatch):
    """A stand-in for W&B: the options of its runs, and what they were given."""
    begun = []

    def init(**options):
        begun.append((options, FakeRun(options)))
        return begun[-1][1]

    package(monkeypatch, "wandb", init=init, Settings=dict, Image=lambda array: array)
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    return begun


@dataclass(frozen=True)
class Entity:
    key: str
    value: float | str
    timestamp: int = 0
    step: int = 0


@pytest.fixture
def mlflow(monkeypatch):
    """A stand-in for MLflow's client: all its calls, in order."""
    calls = []

    class Client:
        def __init__(self, tracking_uri):
            calls.append(("uri", tracking_uri))

        def get_experiment_by_name(self, name):
            return None

        def create_experiment(self, name, artifact_location):
            calls.append(("experiment", name, artifact_location))
            return "1"

        def create_run(self, experiment, run_name):
            calls.append(("run", experiment, run_name))
            return types.SimpleNamespace(info=types.SimpleNamespace(run_id="abc"))

        def get_run(self, known):
            return types.SimpleNamespace(info=types.SimpleNamespace(run_id=known))

        def __getattr__(self, name):
            return lambda *arguments, **options: calls.append((name, *arguments, options))

    package(monkeypatch, "mlflow", MlflowClient=Client)
    package(monkeypatch, "mlflow.entities", Metric=Entity, Param=Entity)
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME"):
        monkeypatch.delenv(name, raising=False)
    return calls


def test_wandb_gets_config_metrics_and_images(shards, tmp_path, wandb):
    assert train(shards, tmp_path / "base", "wandb").finished
    ((options, found),) = wandb
    assert (options["project"], options["name"], options["dir"]) == ("imagen", "base", str(tmp_path / "base"))
    assert options["config"]["train"]["loggers"] == ["wandb"] and options["config"]["optim"]["lr"] == 1e-3
    assert found.rows == metrics(tmp_path / "base") and found.ended == 0
    assert (found.images[6]["samples"] == IMAGE.permute(1, 2, 0).numpy()).all()
    assert not (tmp_path / "base" / "tensorboard").exists()


def test_a_resumed_run_resumes_in_wandb(shards, tmp_path, wandb, monkeypatch):
    monkeypatch.setenv("WANDB_PROJECT", "photos")
    train(shards, tmp_path, "wandb", steps=3)
    train(shards, tmp_path, "wandb", steps=6)
    (first, _), (second, found) = wandb
    assert first["project"] == "photos" and first["id"] == second["id"] == found.id and second["resume"] == "allow"
    assert json.loads((tmp_path / "loggers.json").read_text()) == {"wandb": found.id}
    assert list(found.rows) == [6]


def test_an_error_while_training_is_reported_once(shards, tmp_path, wandb):
    class Cut(Callback):
        def on_step(self, run, step, result):
            wandb[0][1].fails = step > 3

    lines = []
    what = experiment(steps=9, loggers=("wandb",))
    assert train_quietly(what, shards, tmp_path, callbacks=[Cut(), Sheet()], report=lines.append).finished
    said = [line for line in lines if "wandb" in line]
    assert said == [f"wandb stopped logging: the server is gone; {tmp_path}/metrics.jsonl has all metrics"]
    assert list(wandb[0][1].rows) == [3] and list(metrics(tmp_path)) == [3, 6, 9]


def test_an_error_at_the_start_is_the_users(shards, tmp_path, wandb, monkeypatch):
    def init(**options):
        raise RuntimeError("no API key\nmore")

    monkeypatch.setattr(sys.modules["wandb"], "init", init)
    with pytest.raises(UserError, match=r"^train\.loggers: wandb cannot start: no API key$"):
        train(shards, tmp_path, "wandb")


def test_mlflow_gets_parameters_metrics_and_images(shards, tmp_path, mlflow):
    run = tmp_path / "base"
    assert train(shards, run, "mlflow").finished
    assert mlflow[0] == ("uri", f"sqlite:///{run}/mlflow.db")
    assert mlflow[1:3] == [("experiment", "imagen", (run / "mlflow").as_uri()), ("run", "1", "base")]
    batches = [call[-1] for call in mlflow if call[0] == "log_batch"]
    parameters = {param.key: param.value for batch in batches for param in batch.get("params", ())}
    assert parameters["optim.lr"] == "0.001" and parameters["train.loggers"] == "['mlflow']"
    assert all(len(batch.get("params", ())) <= 100 for batch in batches)
    rows: dict[int, dict[str, float]] = {}
    for metric in (metric for batch in batches for metric in batch.get("metrics", ())):
        rows.setdefault(metric.step, {})[metric.key] = metric.value
    assert rows == metrics(run)
    (image,) = (call for call in mlflow if call[0] == "log_image")
    assert (image[2] == IMAGE.permute(1, 2, 0).numpy()).all() and image[-1] == {"key": "samples", "step": 6}
    assert mlflow[-1][:3] == ("set_terminated", "abc", "FINISHED")


def test_a_failed_and_resumed_run_in_mlflow(shards, tmp_path, mlflow, monkeypatch):
    class Failing(Callback):
        def on_step(self, run, step, result):
            raise UserError("no more")

    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://example.org")
    what = experiment(steps=3, loggers=("mlflow",))
    with pytest.raises(UserError, match="no more"):
        train_quietly(what, shards, tmp_path, callbacks=[Failing()])
    assert mlflow[0] == ("uri", "http://example.org") and mlflow[1] == ("experiment", "imagen", None)
    assert mlflow[-1][:3] == ("set_terminated", "abc", "FAILED")
    begun = [call for call in mlflow if call[0] == "run"]
    train_quietly(what, shards, tmp_path)
    assert [call for call in mlflow if call[0] == "run"] == begun  # no second one
    assert ("update_run", "abc", {"status": "RUNNING"}) in mlflow


def test_a_missing_package_is_named_before_the_run_exists(shards, tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"names wandb, which is not installed; run: pip install '.*\[wandb\]'"):
        train(shards, tmp_path / "run", "wandb")
    assert not (tmp_path / "run").exists()
    check_loggers(["tensorboard"])  # the default needs no package
    assert build_loggers(["tensorboard", "mlflow"]) == []


def test_a_logger_named_twice_is_one():
    assert len(build_loggers(["tensorboard", "tensorboard"])) == 1


def test_loggers_may_change_and_old_configs_lack_them(shards, tmp_path, wandb):
    lines = []
    train_quietly(experiment(steps=3), shards, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    del config["train"]["loggers"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert train(shards, tmp_path, "wandb", report=lines.append).step == 6
    assert not [line for line in lines if "train.loggers" in line]


@pytest.mark.skipif(importlib.util.find_spec("wandb") is None, reason="needs wandb")
def test_the_real_wandb_offline(shards, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    assert train(shards, tmp_path, "wandb").finished
    (folder,) = (tmp_path / "wandb").glob("offline-run-*")
    assert list(folder.glob("*.wandb")) and list(folder.rglob("*.png"))


@pytest.mark.skipif(importlib.util.find_spec("mlflow") is None, reason="needs mlflow")
def test_the_real_mlflow_without_a_server(shards, tmp_path, monkeypatch):
    from mlflow import MlflowClient

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert train(shards, tmp_path, "mlflow").finished
    client = MlflowClient(tracking_uri=f"sqlite:///{tmp_path}/mlflow.db")
    (run,) = client.search_runs([client.get_experiment_by_name("imagen").experiment_id])
    history = {metric.step: metric.value for metric in client.get_metric_history(run.info.run_id, "loss")}
    assert history == pytest.approx({step: row["loss"] for step, row in metrics(tmp_path).items()})
    assert run.info.status == "FINISHED" and run.data.params["train.steps"] == "6"
    assert list((tmp_path / "mlflow").rglob("*.png"))
