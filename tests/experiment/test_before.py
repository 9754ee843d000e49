"""Runs before a run: which, in what order, where, and none before all are sound."""

from __future__ import annotations

import json
import re

import ml_collections
import pytest

from configs import eqinv
from jaxequi import main
from jaxequi.errors import Refusal
from jaxequi.experiment import before
from jaxequi.prepare import environments as prepared
from jaxequi.runs import report
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


def smoke(**fields):
    config = eqinv.get_config("smoke")
    for one in (config, *config.before.values()):
        one.backbone = ml_collections.ConfigDict({"name": "tests.experiment.tiny"})
    config.update_from_flattened_dict({k.replace("__", "."): v for k, v in fields.items()})
    return config


@pytest.mark.usefixtures("nothing_compiles")
def test_a_fault_of_any_run_is_told_before_the_first(tmp_path):
    for fields, message in (
        ({"method__inv": "rx"}, "Did you mean 'rex'"),
        ({"method__inv_start": 3}, "before the end of the run"),
        ({"batch_size": 96}, "more than the"),
        ({"init_from": "runs/typo"}, "runs/typo"),
        ({"train__source__shots": 99}, "take 1 to"),
        ({"before__scratch__method__name": "supervise"}, "Did you mean 'supervised'"),
        ({"method__environments_from": "nowhere.npz", "compare": ()}, "prepare.environments"),
    ):
        with pytest.raises(Refusal, match=message):
            main.train(smoke(**fields), (), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_pipeline_goes_on_in_the_run_that_was_interrupted(tmp_path, monkeypatch):
    """Each of two runs is cut behind its second step."""
    monkeypatch.setattr(main, "_report", lambda *run: None)
    cuts = []

    class Cut(loop.Interruption):
        def reached(self, step):
            if step == 2:
                cuts.append(step)
            return step == 2 and len(cuts) < 3

    monkeypatch.setattr(loop, "Interruption", Cut)
    codes = [main.train(smoke(compare=()), (), tmp_path / "cut") for _ in range(3)]
    assert codes == [loop.INTERRUPTED, loop.INTERRUPTED, loop.FINISHED]
    for name in (".", "stage1"):
        rows = log.read_metrics(tmp_path / "cut" / name)
        assert [row["step"] for row in rows] == [1, 2, 3]
    assert not (tmp_path / "cut" / "scratch").exists()
    config = json.loads((tmp_path / "cut" / "config.json").read_text())
    assert config["init_from"] == str(tmp_path / "cut" / "stage1")
    assert len(config["method"]["start_digest"]) == 64
    _, _, _, extra = read_network(tmp_path / "cut" / "checkpoints")
    environments = extra["own"]["environments"]
    assert environments.dtype == "int8"
    assert set(environments.ravel().tolist()) == {-1, 0, 1}
    saved = prepared.table(tmp_path / "cut")
    assert (saved.table == environments).all()
    digests = [config["method"][f"{name}_digest"] for name in ("start", "data")]
    assert [saved.start, saved.data] == digests
    report.write(tmp_path / "cut")
    figures = {file.stem for file in (tmp_path / "cut" / "figures").glob("*.png")}
    assert {"environments", "mask", "shift"} < figures
    for of, name in (("values", "start"), ("examples", "data")):
        with monkeypatch.context() as changed:
            changed.setattr(f"jaxequi.experiment.cache.digest_of_{of}", lambda *_: "other")
            with pytest.raises(Refusal, match=rf'\+ method.{name}_digest = "other"'):
                main.train(smoke(compare=()), (), tmp_path / "cut")


def test_the_report_shows_the_runs_beside(tmp_path):
    val, test = "val/classification/top1", "testgt/classification/top1"
    for name, scores in (("scratch", (0.1, 0.2)), (".", (0.5, 0.3))):
        (tmp_path / name).mkdir(exist_ok=True)
        rows = [{"step": i, val: v, test: v + 0.1} for i, v in enumerate(scores, start=1)]
        (tmp_path / name / "metrics.jsonl").write_text("".join(f"{json.dumps(r)}\n" for r in rows))
        config = {"compare": ["scratch"], "method": {"name": "supervised"}}
        (tmp_path / name / "config.json").write_text(json.dumps(config if name == "." else {}))
    page = report.write(tmp_path).read_text()
    head, *rows = re.findall("<tr>(.*?)</tr>", page.partition("<h2>Comparison</h2>")[2])[:3]
    assert re.findall("<th.*?>(.*?)</th>", head) == [
        "run",
        "top-1",
        "test top-1",
        "test top-1 at best",
    ]
    assert [re.findall("<t[hd].*?>(.*?)</t", row) for row in rows] == [
        ["scratch", "0.200", "0.300", "0.300"],
        ["this run", "0.300", "0.400", "0.600"],
    ]
