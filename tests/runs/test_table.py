"""The table of many runs: who belongs together, what a row holds, what is said of the trends."""

from __future__ import annotations

import csv
import json

import pytest

from jaxequi.runs import table


def made(folder, config, metrics):
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "metrics.jsonl").write_text(json.dumps({"step": 10, **metrics}) + "\n")
    return folder


def sie(seed=0, **method):
    return {"seed": seed, "mesh": {"data": seed}, "method": {"name": "sie", "vary": True, **method}}


def judging(folder, steps=9, **method):
    """The config of a run that judges another by SIE's heads."""
    method = {"name": "linear", "heads": {"rotation": ["deep"]}, "drift": False, **method}
    return {"init_from": str(folder), "method": method, "cache": {"on": True}, "total_steps": steps}


def test_rows_join_seeds_and_take_offline_evaluations_first(tmp_path):
    runs = []
    for seed, (online, offline) in enumerate([(0.5, 0.7), (0.6, 0.8)]):
        folder = made(tmp_path / f"sie{seed}", sie(seed), {"val/online/r2/representation": online})
        runs.append(folder)
        scores = {
            "val/heads/r2/rotation-all-deep": offline,
            "val/heads/r2/rotation-invariant-deep": 0.25,
            "val/retrieval/mrr": 0.4,
        }
        runs.append(made(tmp_path / f"eval{seed}", judging(folder), scores))
    other = {"seed": 0, "mesh": {}, "method": {"name": "vicreg"}}
    scores = {"val/online/r2/representation": 0.3, "val/knn/top1": 0.9}
    runs.append(made(tmp_path / "vicreg", other, scores))
    rows = table.rows(table.join([table.read(run) for run in runs]))
    assert [(row.label, row.encoder, row.part, row.protocol) for row in rows] == [
        ("sie", "online", "all", "clean, 9 steps"),
        ("sie", "online", "invariant", "clean, 9 steps"),
        ("vicreg", "online", "all", "online"),
    ]
    assert rows[0].values == {"rotation R2": [0.7, 0.8], "MRR": [0.4, 0.4]}
    assert rows[2].values == {"rotation R2": [0.3], "kNN": [0.9]}
    assert "| 0.750 ± 0.071 (2) |" in table.markdown(table.cells(rows))
    assert table.shown([20.0, 20.0]) == "20"  # neighbours
    assert table.shown([1.0, 1.0]) == "1.000 ± 0.000 (2)"
    assert "PRE" not in table.markdown(table.cells(rows))  # which no run has
    lines = list(csv.DictReader(table.to_csv(rows).splitlines()))
    assert [line["seeds"] for line in lines] == ["2", "2", "1"]
    assert float(lines[0]["rotation R2"]) == pytest.approx(0.75)
    assert float(lines[0]["rotation R2 spread"]) == pytest.approx(0.05 * 2**0.5)


def test_each_protocol_and_encoder_is_a_row(tmp_path):
    run = made(tmp_path / "moco", {"seed": 0, "method": {"name": "moco"}}, {"loss": 1.0})
    folders = [run]
    for number, (changes, scores) in enumerate(
        [
            ({}, {"val/heads/top1/classification-all-linear": 0.5}),
            ({"total_steps": 20}, {"val/heads/top1/classification-all-linear": 0.6}),
            ({"init_encoder": "target"}, {"val/heads/top1/classification-all-linear": 0.7}),
            ({"protocol": "airl"}, {"val/heads/top1/classification-all-linear": 0.65}),
            ({"method": {"name": "supervised"}}, {"val/classification/top1": 0.8}),
            (
                {"method": {"name": "linear", "heads": {}}, "total_steps": 0},
                {
                    "val/knn/top1": 0.9,
                    "val/knn/k": 20,
                    "val/knn/temperature": 0.07,
                    "val/rank/effective_rank": 4.0,
                },
            ),
        ]
    ):
        folders.append(made(tmp_path / str(number), {**judging(run), **changes}, scores))
    rows = table.rows(table.join([table.read(folder) for folder in folders]))
    assert [(row.encoder, row.protocol, row.values) for row in rows] == [
        ("online", "clean, 9 steps", {"top-1": [0.5]}),
        ("online", "clean, 20 steps", {"top-1": [0.6]}),
        ("target", "clean, 9 steps", {"top-1": [0.7]}),
        ("online", "airl, 9 steps", {"top-1": [0.65]}),
        ("online", "fine-tuned, 9 steps", {"top-1": [0.8]}),
        ("online", "no head", {"kNN": [0.9], "k": [20], "T": [0.07], "rank": [4.0]}),
    ]


def test_labels_tell_runs_of_one_method_apart(tmp_path):
    configs = [
        sie(0, predictor={"name": "hypernetwork", "deep": False}),
        sie(1, predictor={"name": "hypernetwork", "deep": False}),
        sie(0, predictor={"name": "wigner", "irreps": "4x1o"}),
        sie(0, predictor={"name": "hypernetwork", "deep": False}, vary=False),
        {"seed": 0, "method": {"name": "simclr"}},
    ]
    trained = table.join(
        [table.read(made(tmp_path / str(i), c, {"loss": 1.0})) for i, c in enumerate(configs)]
    )
    assert table.labels(trained) == [
        "sie (predictor.name=hypernetwork, vary=true)",
        "sie (predictor.name=hypernetwork, vary=true)",
        "sie (predictor.name=wigner, vary=true)",
        "sie (predictor.name=hypernetwork, vary=false)",
        "simclr",
    ]


def test_labels_tell_arguments_of_one_name_apart(tmp_path):
    configs = [
        sie(0, predictor={"name": "hypernetwork", "deep": False}),
        sie(1, predictor={"name": "hypernetwork", "deep": False}),
        sie(0, predictor={"name": "hypernetwork", "deep": True}),
        sie(0, predictor={"name": "wigner", "irreps": "4x1o"}),
    ]
    trained = table.join(
        [table.read(made(tmp_path / str(i), c, {"loss": 1.0})) for i, c in enumerate(configs)]
    )
    assert table.labels(trained) == [
        "sie (predictor.deep=false, predictor.name=hypernetwork)",
        "sie (predictor.deep=false, predictor.name=hypernetwork)",
        "sie (predictor.deep=true, predictor.name=hypernetwork)",
        "sie (predictor.name=wigner)",
    ]


def test_an_evaluation_brings_its_training_run(tmp_path):
    run = made(tmp_path / "sie", sie(), {"loss": 1.0})
    evaluation = made(tmp_path / "eval", judging(run), {"loss": 1.0})
    [one] = table.join([table.read(evaluation)])
    assert one.run.folder == run
    assert [e.folder for e in one.evaluations] == [evaluation]


def test_trends_are_stated_as_they_are():
    def row(label, **values):
        names = {"r2": "rotation R2", "top1": "top-1", "mrr": "MRR", "pre": "PRE"}
        return table.Row(
            label, "online", "all", "clean", {names[k]: [v] for k, v in values.items()}
        )

    told = table.trends(
        [
            row("sie", r2=0.6, top1=0.8, mrr=0.4, pre=0.3),
            row("sie (predictor.name=wigner)", r2=0.9, mrr=0.9),
            row("equimod (a=1)", r2=0.45, mrr=0.5, pre=0.4),
            row("simclr", top1=0.85),
        ]
    )
    assert told == [
        "held: rotation R2 of SIE is at least 0.1 above EquiMod's (0.600 against 0.450)",
        "not held: MRR of SIE is above that of equimod (0.400 against 0.500)",
        "held: PRE of SIE is below that of equimod (0.300 against 0.400)",
        "held: top-1 of SIE is below SimCLR's, by 0.1 at most (0.800 against 0.850)",
    ]


def test_a_folder_without_a_run_is_told(tmp_path):
    with pytest.raises(ValueError, match="holds no run"):
        table.read(tmp_path)
