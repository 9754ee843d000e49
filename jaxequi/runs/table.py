"""One table of many runs: method, encoder and part of the representation x what it is good at.

A row joins the runs that differ in nothing but their seed. Its numbers come from the evaluations of
those runs (configs/evals.py, configs/linear.py), one row for each protocol and encoder, or from
what the run measured itself where there is no evaluation of it.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import pathlib
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from jaxequi.errors import Refusal
from jaxequi.train import log
from jaxequi.train.workdir import CONFIG_FILE

ONLINE = "online"
PARTS = {"all": "", "invariant": "-inv", "equivariant": "-equi"}  # ours -> the online heads'
BAR = "\\|"  # in a cell of Markdown
NO_RESULT = (
    "seed",
    "mesh",
    "sharding",
    "loader",
    "show",
    "published",
    "profile_steps",
    "log_every_steps",
)


class Column(NamedTuple):
    """One column, and the metrics that it shows: the first of them that a run has.

    `{part}` stands for the part, `{suffix}` for the name that the online heads give it; a metric
    without them is about the whole representation.
    """

    title: str
    metrics: Sequence[str]
    best: str = ""  # of the step with the highest value of this metric, in place of the last


COLUMNS = (
    Column(
        "top-1",
        (
            "val/heads/top1/classification-{part}-linear",
            "val/classification/top1",
            "val/online/top1/representation{suffix}",
            "val/turned/accuracy/seen",
        ),
    ),
    Column(
        "top-5",
        (
            "val/heads/top5/classification-{part}-linear",
            "val/classification/top5",
            "val/online/top5/representation{suffix}",
        ),
    ),
    Column("test top-1", ("testgt/classification/top1",)),
    Column("test top-1 at best", ("testgt/classification/top1",), "val/classification/top1"),
    Column("misled", ("testgt/context/misled",)),
    Column("kNN", ("val/knn/top1",)),
    Column("k", ("val/knn/k",)),
    Column("T", ("val/knn/temperature",)),
    Column("turned top-1", ("turned/heads/top1/classification-{part}-linear",)),
    Column("turned kNN", ("turned/knn_turned/top1",)),
    Column("rank", ("val/rank/effective_rank",)),
    Column("all quarter turns", ("val/turned/accuracy/unseen",)),
    Column(
        "rotation R2",
        (
            "val/heads/r2/rotation-{part}-deep",
            "val/heads/r2/rotation-{part}-linear",
            "val/online/r2/representation{suffix}",
        ),
    ),
    Column(
        "rotation R2 by column",
        (
            "val/heads/r2_columns/rotation-{part}-deep",
            "val/heads/r2_columns/rotation-{part}-linear",
        ),
    ),
    Column(
        "rotation R2 in training",  # on the objects that the heads learned from
        ("train/heads/r2/rotation-{part}-deep", "train/heads/r2/rotation-{part}-linear"),
    ),
    Column("rotation R2 of embedding", ("val/online/r2/embedding{suffix}",)),
    Column("orientation R2", ("val/heads/r2/orientation-{part}-deep",)),
    Column("orientation R2 by column", ("val/heads/r2_columns/orientation-{part}-deep",)),
    Column("colour R2", ("val/heads/r2/color-{part}-deep",)),
    Column("MRR", ("val/retrieval/mrr",)),
    Column("H@1", ("val/retrieval/hit@1",)),
    Column("H@5", ("val/retrieval/hit@5",)),
    Column("PRE", ("val/prediction/pre/val-val",)),
)


@dataclasses.dataclass(frozen=True)
class Run:
    """What a run's folder says: its config and its logged steps."""

    folder: pathlib.Path
    config: dict[str, Any]
    rows: list[dict[str, Any]]

    @property
    def evaluates(self) -> pathlib.Path | None:
        """The run whose checkpoint it evaluates, if it is an evaluation."""
        return pathlib.Path(self.config["init_from"]).resolve() if self.protocol else None

    @property
    def protocol(self) -> str:
        """How it judges the checkpoint that it starts with; "" for a run that is judged itself."""
        method = self.config.get("method") or {}
        if not self.config.get("init_from") or method.get("name") not in ("linear", "supervised"):
            return ""
        if self.config.get("protocol"):
            return self.config["protocol"]
        if method["name"] == "supervised":
            return "fine-tuned"
        if not method["heads"]:
            return "no head"
        if method.get("drift"):
            return "published"
        return "clean" if self.config["cache"]["on"] else "linear"

    @property
    def encoder(self) -> str:
        """Which network of the checkpoint it judges."""
        return self.config.get("init_encoder") or ONLINE

    def last(self, metric: str) -> float | None:
        """The last logged value of a metric."""
        return next((row[metric] for row in reversed(self.rows) if metric in row), None)

    def value(self, column: Column, part: str = "all") -> float | None:
        """What a column shows of the run."""
        about_parts = [metric for metric in column.metrics if "{" in metric]
        for metric in column.metrics if part == "all" else about_parts:
            name = metric.format(part=part, suffix=PARTS[part])
            rows = [row for row in self.rows if name in row and column.best in (*row, "")]
            if rows:
                best = max(rows, key=lambda row: row[column.best]) if column.best else rows[-1]
                return best[name]
        return None


def read(folder: pathlib.Path) -> Run:
    """Read a run's folder.

    Raises:
      ValueError: it holds no run.
    """
    rows = log.read_metrics(folder)
    if not rows or not (folder / CONFIG_FILE).exists():
        raise Refusal(f"{folder} holds no run: no {CONFIG_FILE} or no logged step")
    return Run(folder, json.loads((folder / CONFIG_FILE).read_text()), rows)


@dataclasses.dataclass(frozen=True)
class Trained:
    """A training run with the evaluations of its checkpoints."""

    run: Run
    evaluations: Sequence[Run]


def join(runs: Sequence[Run]) -> list[Trained]:
    """Put evaluations to the training runs that they are of, which are read if not given.

    Raises:
      ValueError: the folder that an evaluation is of holds no run.
    """
    training = {run.folder.resolve(): run for run in runs if not run.evaluates}
    evaluations: dict[pathlib.Path, list[Run]] = {folder: [] for folder in training}
    for run in runs:
        if run.evaluates:
            if run.evaluates not in training:
                training[run.evaluates] = read(run.evaluates)
            evaluations.setdefault(run.evaluates, []).append(run)
    return [Trained(run, evaluations[folder]) for folder, run in training.items()]


def _flat(config: Mapping[str, Any], at: str = "") -> dict[str, str]:
    flat: dict[str, str] = {}
    for name, value in config.items():
        if not at and name in NO_RESULT:
            continue
        if isinstance(value, dict):
            flat |= _flat(value, f"{at}{name}.")
        else:
            flat[f"{at}{name}"] = json.dumps(value)
    return flat


def _method(flat: Mapping[str, str]) -> str:
    return flat.get("method.name", "backbone").strip('"')


def labels(trained: Sequence[Trained]) -> list[str]:
    """Name each run by its method, and by what tells it from others of the same method.

    Runs that differ only in what no result depends on, or in the seed, get one name.
    """
    flats = [_flat(one.run.config) for one in trained]
    names = []
    for flat in flats:
        same = [other for other in flats if _method(other) == _method(flat)]
        differ = _differing(flat, same)
        # Another predictor is another name: that it has other arguments goes without saying, but
        # beside one of its own name.
        named = {key for key in differ if key.endswith(".name")}
        alike = [other for other in same if all(other.get(k) == flat.get(k) for k in named)]
        parts = tuple(key.removesuffix("name") for key in named)
        differ = {key for key in differ if not key.startswith(parts)} | _differing(flat, alike)
        told = [
            f"{key.removeprefix('method.')}={flat[key].strip(chr(34))}"
            for key in sorted((differ | named) & flat.keys())
        ]
        method = _method(flat)
        names.append(f"{method} ({', '.join(told)})" if told else method)
    return names


def _differing(flat: Mapping[str, str], others: Iterable[Mapping[str, str]]) -> set[str]:
    """Keys that are not of equal value in all of the configs."""
    return {k for other in others for k in {*flat, *other} if flat.get(k) != other.get(k)}


class Row(NamedTuple):
    """One row: values of each column, one for each seed that has it, and the runs that they are of.

    Of each seed `runs` holds the run that trained and, if there is one, the run that judged it.
    """

    label: str
    encoder: str
    part: str
    protocol: str
    values: dict[str, list[float]]
    runs: Sequence[Sequence[Run]] = ()


def rows(trained: Sequence[Trained]) -> list[Row]:
    """Make the rows of the table."""
    table: dict[tuple[str, str, str, str], dict[str, list[float]]] = {}
    made: dict[tuple[str, str, str, str], list[Sequence[Run]]] = {}
    for label, one in zip(labels(trained), trained, strict=True):
        # Of one protocol, evaluations of unequal length are different evaluations.
        sources = [
            (
                run.encoder,
                run.protocol + (f", {n} steps" if (n := run.config["total_steps"]) else ""),
                run,
            )
            for run in one.evaluations
        ]
        for encoder, protocol, run in sources or [(ONLINE, ONLINE, one.run)]:
            for part in PARTS:
                key = (label, encoder, part, protocol)
                found = {c.title: v for c in COLUMNS if (v := run.value(c, part)) is not None}
                for title, value in found.items():
                    table.setdefault(key, {}).setdefault(title, []).append(value)
                if found:
                    made.setdefault(key, []).append(
                        (one.run,) if run is one.run else (one.run, run)
                    )
    return [Row(*key, values, made[key]) for key, values in table.items()]


def shown(values: Sequence[float]) -> str:
    """`0.532 ± 0.011 (3)`: mean, spread (standard deviation) and number of seeds; `20` of a k."""
    if not values:
        return ""
    if values[0] > 1 and {*values} == {round(values[0])}:  # no score, but how it was taken
        return str(round(values[0]))
    mean = f"{statistics.fmean(values):.3f}"
    return f"{mean} ± {statistics.stdev(values):.3f} ({len(values)})" if len(values) > 1 else mean


def cells(table: Sequence[Row]) -> list[list[str]]:
    """The table as text, its head first; columns that no row has are left out."""
    used = [column.title for column in COLUMNS if any(column.title in row.values for row in table)]
    head = ["method", "encoder", "part", "protocol", *used]
    body = [
        [
            row.label,
            row.encoder,
            row.part,
            row.protocol,
            *(shown(row.values.get(title, [])) for title in used),
        ]
        for row in table
    ]
    return [head, *body]


def beside(runs: Mapping[str, Run]) -> list[list[str]]:
    """A table of runs as they are called, its head first: what each measured itself."""
    found = {name: [run.value(column) for column in COLUMNS] for name, run in runs.items()}
    used = [i for i in range(len(COLUMNS)) if any(row[i] is not None for row in found.values())]
    head = ["run", *(COLUMNS[i].title for i in used)]
    numbers = (
        [name, *("" if row[i] is None else f"{row[i]:.3f}" for i in used)]
        for name, row in found.items()
    )
    return [head, *numbers]


def markdown(lines: Sequence[Sequence[str]]) -> str:
    """A table, its head first, in Markdown."""
    head, *body = lines
    written = [head, ["---"] * len(head), *body]
    return "".join(f"| {' | '.join(c.replace('|', BAR) for c in line)} |\n" for line in written)


def to_csv(table: Sequence[Row]) -> str:
    """The table in full digits: of each column the mean and the spread (standard deviation)."""
    file = io.StringIO()
    writer = csv.writer(file)
    titles = [title for c in COLUMNS for title in (c.title, f"{c.title} spread")]
    writer.writerow(["method", "encoder", "part", "protocol", "seeds", *titles])
    for row in table:
        seeds = [row.values.get(column.title, []) for column in COLUMNS]
        numbers: list[object] = []
        for values in seeds:
            numbers.append(statistics.fmean(values) if values else "")
            numbers.append(statistics.stdev(values) if len(values) > 1 else "")
        key = (row.label, row.encoder, row.part, row.protocol)
        writer.writerow([*key, max(map(len, seeds)), *numbers])
    return file.getvalue()


def _best(
    table: Sequence[Row], title: str, method: str, without: str = "", lowest: bool = False
) -> float | None:
    """The best mean of a column over the rows of a method."""
    found = [
        statistics.fmean(row.values[title])
        for row in table
        if row.label.split(" ")[0] == method
        and not row.protocol.startswith("fine-tuned")  # which judges the labels more than the start
        and title in row.values
        and not (without and without in row.label)
    ]
    return (min if lowest else max)(found) if found else None


def trends(table: Sequence[Row]) -> list[str]:
    """Say of each trend of SIE's paper that these runs can show whether they show it.

    The trends are those by which the specification of SIE judges: its rotation R2 well above
    EquiMod's and close to AugSelf's, its predictor the best, its classification below SimCLR's.
    """
    lines = []

    def compare(text: str, ours: float | None, other: float | None, holds: bool | None) -> None:
        if ours is None or other is None:
            return  # not all of these runs are here
        verdict = "held" if holds else "not held"
        lines.append(f"{verdict}: {text} ({ours:.3f} against {other:.3f})")

    def difference(title: str, other: str, lowest: bool = False) -> tuple[Any, Any, float]:
        ours = _best(table, title, "sie", without="wigner", lowest=lowest)
        theirs = _best(table, title, other, lowest=lowest)
        return ours, theirs, (ours or 0.0) - (theirs or 0.0)

    ours, theirs, gap = difference("rotation R2", "equimod")
    compare("rotation R2 of SIE is at least 0.1 above EquiMod's", ours, theirs, gap >= 0.1)
    ours, theirs, gap = difference("rotation R2", "augself")
    compare("rotation R2 of SIE is within 0.05 of AugSelf's", ours, theirs, abs(gap) <= 0.05)
    for other in ("equimod", "only_equi"):
        ours, theirs, gap = difference("MRR", other)
        compare(f"MRR of SIE is above that of {other}", ours, theirs, gap > 0)
        ours, theirs, gap = difference("PRE", other, lowest=True)
        compare(f"PRE of SIE is below that of {other}", ours, theirs, gap < 0)
    ours, theirs, gap = difference("top-1", "simclr")
    compare("top-1 of SIE is below SimCLR's, by 0.1 at most", ours, theirs, -0.1 <= gap < 0)
    return lines
