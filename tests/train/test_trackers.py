"""Trackers, by modules that stand for their packages: what is written, and where a run goes on."""

from __future__ import annotations

import json
import sys
import types

import pytest

from configs import mae
from jaxequi import experiment
from jaxequi.train import log, trackers, workdir

CONFIG = {"seed": 3, "method": {"name": "mae", "options": {}}, "show": ["loss"]}


@pytest.fixture
def services(monkeypatch):
    """Stand for wandb and mlflow; what they are told goes into the list."""
    told = []

    class Run:
        def __init__(self, number, options):
            self.id, self.step = options["id"] or f"w{number}", options.get("step", 0)
            told.append(("init", options))

        def log(self, metrics, step):
            self.step = step + 1
            told.append(("log", step, metrics))

        def finish(self, exit_code):
            told.append(("finish", exit_code))

    def init(**options):
        assert vars(options.pop("settings")) == {"console": "off", "silent": True}
        return Run(len(told), options)

    class Client:
        def get_experiment_by_name(self, name):
            told.append(("experiment", name))

        def create_experiment(self, name):
            return f"e-{name}"

        def create_run(self, experiment, run_name):
            told.append(("create", experiment, run_name))
            return types.SimpleNamespace(info=types.SimpleNamespace(run_id="m1"))

        def log_batch(self, run, metrics=(), params=()):
            told.append(("batch", run, [(m.key, m.value, m.step) for m in metrics], params))

        def update_run(self, run, status):
            told.append(("update", run, status))

        def set_terminated(self, run, status):
            told.append(("terminated", run, status))

    def metric(key, value, timestamp, step):
        assert timestamp > 1.7e12  # milliseconds
        return types.SimpleNamespace(key=key, value=value, step=step)

    entities = types.SimpleNamespace(Metric=metric, Param=lambda key, value: (key, value))
    modules = {
        "wandb": types.SimpleNamespace(init=init, Settings=types.SimpleNamespace),
        "mlflow": types.SimpleNamespace(MlflowClient=Client, entities=entities),
        "mlflow.entities": entities,
    }
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    for name in ("WANDB_PROJECT", "MLFLOW_EXPERIMENT_NAME"):
        monkeypatch.delenv(name, raising=False)
    forget()
    yield told
    forget()


def forget():
    """Import the files again, with other packages."""
    for name in ("wandb", "mlflow"):
        sys.modules.pop(f"jaxequi.train.trackers.{name}", None)


def logged(folder, name, start, steps, total=4):
    told = log.RunLog(
        folder,
        start_step=start,
        total_steps=total,
        makers=trackers.find((name,)),
        config=CONFIG,
    )
    for step in steps:
        told.write(step, {"loss": step / 2, "val/knn/top1": 0.5})
    told.close()


def test_wandb(services, tmp_path):
    folder = tmp_path / "sie"
    folder.mkdir()
    logged(folder, "wandb", 0, (1, 2))
    init, *rest = services
    assert init == (
        "init",
        {
            "project": "jaxequi",
            "id": None,
            "resume": "allow",
            "name": "sie",
            "dir": folder,
            "config": CONFIG,
        },
    )
    assert rest == [
        ("log", 1, {"loss": 0.5, "val/knn/top1": 0.5}),
        ("log", 2, {"loss": 1.0, "val/knn/top1": 0.5}),
        ("finish", 1),  # it is to go on
    ]
    assert json.loads((folder / "trackers.json").read_text()) == {"wandb": "w0"}
    services.clear()
    logged(folder, "wandb", 2, (3, 4))
    assert services[0][1]["id"] == "w0"
    assert services[1:] == [
        ("log", 3, {"loss": 1.5, "val/knn/top1": 0.5}),
        ("log", 4, {"loss": 2.0, "val/knn/top1": 0.5}),
        ("finish", 0),
    ]


def test_wandb_has_what_was_lost_in_a_crash(services, tmp_path):
    """The service is ahead of the checkpoint: the same steps come again, with the same values."""
    tracker = trackers.find(("wandb",))["wandb"](tmp_path, CONFIG, "w7")
    tracker.run.step = 3
    for step in (1, 2, 3):
        tracker.write(step, {"loss": 1.0})
    assert services[1:] == [("log", 3, {"loss": 1.0})]


def test_mlflow(services, tmp_path):
    folder = tmp_path / "sie"
    folder.mkdir()
    logged(folder, "mlflow", 0, (1,))
    params = [("seed", "3"), ("method.name", "mae"), ("method.options", "{}"), ("show", "['loss']")]
    assert services == [
        ("experiment", "jaxequi"),
        ("create", "e-jaxequi", "sie"),
        ("batch", "m1", [], params),
        ("batch", "m1", [("loss", 0.5, 1), ("val/knn/top1", 0.5, 1)], ()),
        ("terminated", "m1", "KILLED"),
    ]
    services.clear()
    logged(folder, "mlflow", 1, (4,))
    assert services == [
        ("update", "m1", "RUNNING"),
        ("batch", "m1", [("loss", 2.0, 4), ("val/knn/top1", 0.5, 4)], ()),
        ("terminated", "m1", "FINISHED"),
    ]


def test_one_that_fails_is_left_and_the_run_goes_on(tmp_path, capsys):
    class Lost:
        id = "1"

        def __init__(self, *unused):
            self.written = []

        def write(self, step, metrics):
            raise ConnectionError("the server is gone\nfor good")

        def close(self, finished):
            raise AssertionError("it was left")

    class Sound(Lost):
        def write(self, step, metrics):
            seen.append(step)

        def close(self, finished):
            seen.append(finished)

    seen = []
    makers = {"lost": Lost, "sound": Sound}
    told = log.RunLog(tmp_path, start_step=0, total_steps=2, makers=makers, config=CONFIG)
    told.write(1, {"loss": 1.0})
    told.write(2, {"loss": 0.5})
    told.close()
    assert seen == [1, 2, True]
    output = capsys.readouterr().out
    assert output.count("tracker lost is left: ConnectionError: the server is gone. metrics") == 1
    assert [row["step"] for row in log.read_metrics(tmp_path)] == [1, 2]


def test_one_that_does_not_open_refuses_the_run(tmp_path):
    def locked(*unused):
        raise RuntimeError("no API key")

    with pytest.raises(ValueError, match="tracker locked does not open: RuntimeError: no API key"):
        log.RunLog(tmp_path, start_step=0, total_steps=2, makers={"locked": locked})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("wandb",), r'pip install -e "\.\[wandb\]"'),
        (("mlflow",), r'pip install -e "\.\[mlflow\]"'),
        (("wandbb",), "Did you mean 'wandb'"),
        (("no.such_module",), "a module of your own"),
    ],
)
def test_what_is_not_there_is_refused(given, message, monkeypatch, nothing_compiles):
    forget()
    monkeypatch.setitem(sys.modules, "wandb", None)
    monkeypatch.setitem(sys.modules, "mlflow", None)
    config = mae.get_config("smoke")
    config.trackers = given
    with pytest.raises(ValueError, match=message):
        experiment.build(config)


def test_a_run_that_is_begun_anew_has_another_id(tmp_path):
    (tmp_path / "trackers.json").write_text('{"wandb": "old"}')
    with workdir.held(tmp_path, CONFIG, begun=False):
        assert not (tmp_path / "trackers.json").exists()
    (tmp_path / "trackers.json").write_text('{"wandb": "old"}')
    with workdir.held(tmp_path, CONFIG, begun=True):
        assert (tmp_path / "trackers.json").exists()
