"""Runs before a run: which, in what order, where, and none before all are sound."""

from __future__ import annotations

import json

import ml_collections
import pytest

from jaxequi import main
from jaxequi.errors import Refusal
from jaxequi.experiment import before
from jaxequi.train import log, loop
from jaxequi.train.checkpoint import read_network


def a_plan(tmp_path, overridden=(), **fields):
    config = {
        "init_from": "before:second",
        "compare": ("beside",),
        "before": {
            "unused": {"init_from": None},
            "beside": {"init_from": "before:second"},
            "second": {"init_from": "before:a"},
            "a": {"init_from": "elsewhere"},
        },
        **fields,
    }
    return before.plan(ml_collections.ConfigDict(config), overridden, tmp_path)


def test_what_is_started_with_comes_first_and_what_nobody_asks_for_not_at_all(tmp_path):
    runs = a_plan(tmp_path, ["seed", "before.a.seed", "before.second.batch_size"])
    assert [run.folder.name for run in runs] == ["a", "second", "beside", tmp_path.name]
    starts = [run.config.init_from for run in runs]
    assert starts == ["elsewhere", *(str(tmp_path / n) for n in ("a", "second", "second"))]
    assert [run.overridden for run in runs[:3]] == [["seed"], ["batch_size"], []]
    assert "seed" in runs[-1].overridden
    [alone] = a_plan(tmp_path, init_from="runs/mine", compare=())
    assert alone.config.init_from == "runs/mine"
    [alone] = before.plan(ml_collections.ConfigDict({"init_from": None}), [], tmp_path)
    assert alone.folder == tmp_path


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"init_from": "before:secnd"}, "Did you mean 'second'"),
        ({"compare": ("nothing",)}, "unknown run of `before` 'nothing'"),
        ({"before": {"second": {"init_from": "before:second"}}}, "second -> second"),
        ({"before": {"second/x": {"init_from": None}}}, "called by a word"),
        ({"before": 3}, "before=3: it must be a dict"),
        ({"compare": "second"}, "must be a tuple"),
    ],
)
def test_what_cannot_be_planned(tmp_path, fields, message):
    with pytest.raises(Refusal, match=message):
        a_plan(tmp_path, **fields)


TIMES = ("examples_per_second", "input_wait")
SMOKE = ["jaxequi", "--config=configs/eqinv.py:eqinv,smoke"]


def test_a_fault_of_the_last_run_is_told_before_the_first(tmp_path, monkeypatch, capsys):
    def compiled(self, *args, **options):
        raise AssertionError("compiled")

    monkeypatch.setattr("jax.stages.Lowered.compile", compiled)
    run = f"--workdir={tmp_path / 'run'}"
    for field, message in (
        ("method.inv=rx", "Did you mean 'rex'"),
        ("method.inv_start=3", "before the end of the run"),
        ("batch_size=99", "more than the"),
        ("train.views=('decode',)", "two views"),
        ("train.source.shots=99", "take 1 to"),
        ("method.environments_from=nowhere.npz", "prepare.environments"),
        ("before.scratch.method.name=supervise", "Did you mean 'supervised'"),
    ):
        assert main.main([*SMOKE, run, f"--config.{field}"]) == 2
        assert message in capsys.readouterr().err, field
    assert not (tmp_path / "run").exists()


def test_a_pipeline_goes_on_in_the_run_that_was_interrupted(tmp_path, monkeypatch):
    """Both stages are cut, each after its second step; the result is the unbroken one's."""
    assert main.main([*SMOKE, f"--workdir={tmp_path / 'whole'}"]) == loop.FINISHED
    taken = []

    class Cut(loop.Interruption):
        def reached(self, step):
            taken.append(step)
            return step == 2 and taken.count(2) in (1, 2, 3, 4)

    monkeypatch.setattr(loop, "Interruption", Cut)
    codes = [main.main([*SMOKE, f"--workdir={tmp_path / 'cut'}"]) for _ in range(5)]
    assert codes == [loop.INTERRUPTED] * 4 + [loop.FINISHED]
    folders = [".", "stage1", "scratch", "finetune"]
    for name in folders:
        whole, cut = (log.read_metrics(tmp_path / run / name) for run in ("whole", "cut"))
        kept = [{k: v for k, v in row.items() if k not in TIMES} for row in whole]
        assert kept == [{k: v for k, v in row.items() if k not in TIMES} for row in cut]
    config = json.loads((tmp_path / "cut" / "config.json").read_text())
    assert config["init_from"] == str(tmp_path / "cut" / "stage1")
    assert len(config["method"]["start_digest"]) == 64
    step, _, _, extra = read_network(tmp_path / "cut" / "checkpoints")
    table = extra["own"]["environments"]
    assert step == 3
    assert table.dtype == "int8"
    assert set(table.ravel().tolist()) == {-1, 0, 1}
    page = (tmp_path / "cut" / "report.html").read_text()
    assert "Comparison" in page
    for name in ("scratch", "finetune", "this run"):
        assert f"<td>{name}</td>" in page
