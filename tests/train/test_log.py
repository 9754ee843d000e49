"""Windows of metrics, the metrics file, and its repair after a crash."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

from jaxequi.train import log


def test_window_means_and_empties():
    window = log.Window([{"loss": 1.0}])
    window.add(2, {"loss": jnp.float32(2.0)})
    window.add(3, {"loss": jnp.float32(6.0)})
    assert window.mean() == {"loss": 3.0}
    assert window.mean() == {}


def test_rows_that_were_fetched_stay_as_they_are():
    """A checkpoint may still be writing them when the next steps are fetched."""
    window = log.Window()
    window.add(4, {"loss": jnp.array(2.0)})
    saved = window.fetch()
    window.add(5, {"loss": jnp.array(3.0)})
    assert window.fetch() == [{"loss": 2.0}, {"loss": 3.0}]
    assert saved == [{"loss": 2.0}]


def test_non_finite_names_metric_and_steps():
    window = log.Window()
    for step, value in enumerate([1.0, jnp.inf, 2.0, jnp.nan], start=7):
        window.add(step, {"loss": jnp.float32(1.0), "std": value})
    with pytest.raises(log.NonFiniteError, match="std at step 8 and 1 more up to 10"):
        window.mean()


def test_metrics_beyond_the_start_are_taken_back(tmp_path):
    file = tmp_path / log.METRICS_FILE
    lines = [json.dumps({"step": s, "loss": float(s)}) for s in (10, 20, 30)]
    file.write_text("\n".join(lines) + '\n{"step": 40, "lo')
    told = log.RunLog(tmp_path, start_step=20, total_steps=40)
    told.write(30, {"loss": 3.5})
    told.close()
    assert log.read_metrics(tmp_path) == [
        {"step": 10, "loss": 10.0},
        {"step": 20, "loss": 20.0},
        {"step": 30, "loss": 3.5},
    ]


def test_a_notebook_gets_lines_of_text(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("rich.console._is_jupyter", lambda: True)
    told = log.RunLog(tmp_path, start_step=0, total_steps=2)
    told.say("hello")
    told.close()
    assert capsys.readouterr().out == "hello\n"


def test_events_can_be_read_by_tensorboard(tmp_path):
    accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator",
        reason="tensorboard is of the extra dev",
    )
    told = log.RunLog(tmp_path, start_step=0, total_steps=2)
    told.write(1, {"loss": 0.5, "online/r2/representation": 0.25})
    told.close()
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    [event] = events.Scalars("online/r2/representation")
    assert (event.step, event.value) == (1, 0.25)


@pytest.mark.parametrize(
    ("seconds", "text"), [(3.2, "3s"), (83, "1m23s"), (3599.8, "1h00m"), (7260, "2h01m")]
)
def test_duration(seconds, text):
    assert log.duration(seconds) == text


def test_size():
    assert log.size(100) == "100 B"
    assert log.size(1536) == "1.5 KiB"
    assert log.size(3 * 1024**4) == "3072.0 GiB"


def on_a_terminal(monkeypatch, **environment):
    for name in ("NO_COLOR", "FORCE_COLOR", "TERM", "COLORTERM"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"TERM": "xterm-256color", **environment}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)


CONFIG = {"seed": 0, "method": {"name": "sie", "equi": 8}, "norm": {"groups": 1}, "evals": {}}
PLAIN = """config:
  seed: 0
  method:
    name: "sie"
    equi: 8
  norm:
    groups: 1
  evals: {}
"""


def said(tmp_path, capsys, changed):
    told = log.RunLog(tmp_path, start_step=0, total_steps=1)
    told.say(log.config_text(CONFIG, changed))
    told.close()
    return capsys.readouterr().out


def test_what_the_command_line_changed_is_coloured(tmp_path, capsys, monkeypatch):
    on_a_terminal(monkeypatch)
    output = said(tmp_path, capsys, ["method.equi", "norm"])
    lines = output.splitlines()[:8]
    coloured = [line.strip() for line in lines if "\x1b[33m" in line]
    assert [line.split("\x1b[33m")[1].split("\x1b")[0].strip() for line in coloured] == [
        "equi: 8",
        "norm:",
        "groups: 1",
    ]


@pytest.mark.parametrize("environment", [{"NO_COLOR": "1"}, {"TERM": "dumb"}])
def test_no_colour_where_none_is_wanted(environment, tmp_path, capsys, monkeypatch):
    on_a_terminal(monkeypatch, **environment)
    assert "\x1b[33m" not in said(tmp_path, capsys, ["method.equi"])


def test_no_colour_in_a_file(tmp_path, capsys):
    assert said(tmp_path, capsys, ["method.equi"]) == PLAIN


def test_parameters_by_module():
    layer = {"kernel": np.zeros((3, 3, 2, 5)), "bias": np.zeros(5)}
    params = {
        "backbone": {"conv1": layer, "layer1_0": {"conv1": layer, "bn1": {"scale": np.zeros(5)}}},
        "classifier": {"kernel": np.zeros((500, 10))},
    }
    rows = [line.strip("|").split("|") for line in log.parameter_table(params).splitlines()]
    assert [[cell.strip() for cell in row] for row in rows if len(row) > 1] == [
        ["Module", "Arrays", "Parameters"],
        ["backbone/conv1", "2", "95"],
        ["backbone/layer1_0", "3", "100"],
        ["classifier", "1", "5,000"],
        ["all", "6", "5,195"],
    ]


def test_the_last_metrics_are_those_that_are_shown():
    metrics = {"loss": 0.25, "val/knn/top1": 0.5, "val/knn/top5": 1.0, "epoch": 3.0}
    assert log.final_table(metrics, ("val/knn/top1*", "loss", "nothing")).splitlines() == [
        "  loss          0.25",
        "  val/knn/top1  0.5",
        "  and 2 more in metrics.jsonl",
    ]
    assert len(log.final_table(metrics, ("nothing",)).splitlines()) == 4
