"""A run directory as figures and one HTML page.

Reads what the run left (`config.json`, `metrics.jsonl`, `examples.npz`, `features_*.npz`) and
writes `figures/*.png` and `report.html`, which holds the figures and can be sent by itself.
"""

from __future__ import annotations

import fnmatch
import pathlib
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from matplotlib.figure import Figure

from jaxequi import augment, names
from jaxequi.evals import turned
from jaxequi.groups import quaternions
from jaxequi.objectives.regression import POOLED_R2_FLOOR
from jaxequi.probes import plots
from jaxequi.runs import table
from jaxequi.runs.page import Number, Page, Panel, render
from jaxequi.train import provenance
from jaxequi.train.workdir import EXAMPLES_FILE

LOGITS = ("logits", "heads/classification-")  # names of features, of "label" too
FIGURES = "figures"  # below the folder of a run
NAMED_CLASSES = 40  # a longer list is drawn as a curve
PROBED = (
    Panel(
        "Equivariance error by layer",
        "equivariance",
        "Relative equivariance error of each layer, beside rounding",
    ),
    Panel("Maps of a turned image", "maps", "Maps of an image turned before and after a layer"),
)
# Kinds of measurements, which share an axis wherever they are taken, and other words for them.
MEASURED = ("top1", "top5", "r2", "cross_entropy", "mrr", "pre")
SYNONYMS = {"accuracy": "top1"}
# Columns of the table that may stand at the top: of those that name a class, how many guesses each
# allows; of the others, what a constant has.
GUESSES = {
    **dict.fromkeys(("top-1", "test top-1", "kNN", "turned top-1", "turned kNN"), 1),
    **dict.fromkeys(("misled", "all quarter turns"), 1),
    "top-5": 5,
}
CONSTANT = {"rotation R2": POOLED_R2_FLOOR}


class Curve(NamedTuple):
    """A metric over the steps, and the axis that it shares."""

    axis: str
    label: str
    steps: list[int]
    values: list[float]


def _curves(rows: Sequence[Mapping[str, Any]], sets: Collection[str]) -> dict[str, Curve]:
    """Find the curve of each metric. What was taken once, or never changes, is none.

    Measurements of one kind share an axis, those of training with those of sets that are held out;
    other metrics share one if they differ in the last word alone.
    """
    taken: dict[str, Curve] = {}
    for row in rows:
        for name, value in row.items():
            if name not in taken:
                taken[name] = Curve(*_axis(name, sets), [], [])
            taken[name].steps.append(row["step"])
            taken[name].values.append(value)
    return {
        name: curve
        for name, curve in taken.items()
        if name not in ("step", "epoch") and (len(set(curve.values)) > 1 or len(rows) == 1)
    }


def _axis(name: str, sets: Collection[str]) -> tuple[str, str]:
    first, _, rest = name.partition("/")
    where, words = (
        (first, rest.split("/")) if rest and first in sets else ("train", name.split("/"))
    )
    words = [SYNONYMS.get(word, word) for word in words]
    measured = next((word for word in words if word in MEASURED), None)
    if measured is None:
        axis, _, last = name.rpartition("/")
        return axis or name, last
    return measured, " ".join([where, *(word for word in words if word != measured)])


def curve_figure(axis_name: str, curves: Sequence[Curve]) -> Figure:
    """Draw the curves of one axis; of one kind in one colour, dashed where it is of training."""
    lines = -(-len(curves) // 2) if len(curves) > 1 else 0
    figure = Figure(figsize=(5.4, 3.6 + 0.2 * lines), layout="constrained")
    axis = figure.subplots()
    colours: dict[str, str] = {}
    held_out = any(not curve.label.startswith("train") for curve in curves)
    for curve in curves:
        where, _, kind = curve.label.partition(" ")
        axis.plot(
            curve.steps,
            curve.values,
            "--" if where == "train" and held_out else "-",
            marker="o" if len(curve.steps) < 8 else None,
            ms=4,
            color=colours.setdefault(kind or where, f"C{len(colours)}"),
            label=curve.label,
        )
    if axis_name == "r2":
        axis.axhline(POOLED_R2_FLOOR, color="grey", ls=":", lw=1)
        axis.set_ylim(-0.1, 1)
    axis.set_title(axis_name, fontsize=12, parse_math=False)
    axis.set_xlabel("step")
    axis.grid(alpha=0.3)
    if lines:
        figure.legend(loc="outside lower center", ncols=2, fontsize=8)  # it hides no curve
    return figure


def learning_curves(
    rows: Sequence[Mapping[str, Any]], sets: Collection[str] = (), show: Sequence[str] = ()
) -> dict[Panel, Figure]:
    """One figure an axis: the loss and what `show` names first, the others folded away."""
    axes: dict[str, list[str]] = {}
    found = _curves(rows, sets)
    for name in sorted(found, key=lambda name: (found[name].axis != "loss", name)):
        axes.setdefault(found[name].axis, []).append(name)
    drawn: dict[Panel, Figure] = {}
    folded: dict[Panel, Figure] = {}
    for axis, names_ in axes.items():
        members = [found[name] for name in names_]
        ends = (f"{c.label} from {c.values[0]:.3g} to {c.values[-1]:.3g}" for c in members)
        matters = any(fnmatch.fnmatch(name, pattern) for name in names_ for pattern in show)
        first = matters or axis == "loss"
        file = "curve_" + re.sub(r"[^A-Za-z0-9_-]+", "-", axis)
        panel = Panel(
            "Learning curves" if first else "More curves",
            file,
            f"{axis} over {rows[-1]['step']} steps: {'; '.join(ends)}",
            folded=not first,
        )
        (drawn if first else folded)[panel] = curve_figure(axis, members)
    return drawn | folded


def examples(arrays: Mapping[str, np.ndarray]) -> Figure:
    """The first panels that the network saw, view pairs in a row, with their latents."""
    views, latents = arrays["views"], arrays.get("latent")
    count, pairs = min(len(views), 12), views.shape[1]
    columns = 2 if pairs > 1 else 4
    lines = -(-count // columns)
    height = 1.9 if latents is None else 2.4
    figure = Figure(figsize=(1.6 * columns * pairs, height * lines), layout="tight")
    axes = figure.subplots(lines, columns * pairs, squeeze=False)
    names = arrays.get("class_names")
    for axis in axes.flat:
        axis.axis("off")
    for place in range(count * pairs):
        at, view = divmod(place, pairs)
        axis = axes.flat[place]
        axis.imshow(views[at, view], interpolation="nearest")
        label = arrays["label"][at]
        title = [str(names[label] if names is not None else label)] if view == 0 else [""]
        if latents is not None:
            # Several pipes may show one stored view.
            rx, ry, rz, floor, theta, phi, hue = latents[at, min(view, latents.shape[1] - 1)]
            degrees = np.degrees([rx, ry, rz, theta, phi])
            title += [
                "rot {:.0f} {:.0f} {:.0f}".format(*degrees[:3]),
                f"floor {floor:.2f}  light {hue:.2f}",
                "light at {:.0f}, {:.0f}".format(*degrees[3:]),
            ]
        axis.set_title("\n".join(title), fontsize=8, parse_math=False)  # names may have a $
    return figure


def parts_of(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The representation of the first view, f32[n, d]: whole, and its parts if it has two."""
    whole = arrays["representation"][:, 0]
    invariant, equivariant = arrays.get("parts/representation", (0, 0))
    if not (invariant and equivariant):
        return {"representation": whole}
    return {
        "representation": whole,
        "invariant part": whole[:, :invariant],
        "equivariant part": whole[:, invariant:],
    }


def spectrum(arrays: Mapping[str, np.ndarray]) -> Figure:
    """Singular values of the centred representations: how many directions are in use."""
    figure = Figure(figsize=(6.5, 4), layout="tight")
    axis = figure.subplots()
    for name, part in parts_of(arrays).items():
        # Centring takes one dimension away from as many points.
        values = np.linalg.svd(part - part.mean(0), compute_uv=False)[: len(part) - 1]
        values = values / max(values[0], 1e-12)
        share = values / values.sum()
        rank = np.exp(-np.sum(share * np.log(share + 1e-12)))
        axis.semilogy(np.maximum(values, 1e-8), label=f"{name} (effective rank {rank:.0f})")
    axis.set(xlabel="index", ylabel="singular value / largest")
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)
    return figure


def projection(arrays: Mapping[str, np.ndarray]) -> Figure:
    """Two principal components of each part, coloured by class and by rotation angle."""
    parts = parts_of(arrays)
    latent = arrays.get("latent")
    columns = 1 if latent is None else 2
    figure = Figure(figsize=(5.4 * columns, 4.4 * len(parts)), layout="tight")
    axes = figure.subplots(len(parts), columns, squeeze=False)
    for line, (name, part) in zip(axes, parts.items(), strict=True):
        centred = part - part.mean(0)
        _, _, directions = np.linalg.svd(centred, full_matrices=False)
        x, y = (centred @ directions[:2].T).T
        line[0].scatter(x, y, c=arrays["label"], cmap="tab20", s=10)
        line[0].set_title(f"{name}, by class", fontsize=10)
        if latent is not None:
            w = quaternions.from_euler_xyz(latent[:, 0, :3])[:, 3]
            angle = np.degrees(2 * np.arccos(np.clip(np.abs(w), 0, 1)))
            dots = line[1].scatter(x, y, c=angle, cmap="viridis", s=10)
            figure.colorbar(dots, ax=line[1], label="rotation angle (degrees)")
            line[1].set_title(f"{name}, by rotation angle", fontsize=10)
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
    return figure


def by_class(arrays: Mapping[str, np.ndarray], logits: str = "logits") -> Figure:
    """How often each class is recognised, the hardest first; over all views.

    revisitAIRL logs it at the end of its linear evaluation.
    """
    labels = arrays["label"]
    hits = (arrays[logits].argmax(-1) == labels[:, None]).mean(1)
    present, place = np.unique(labels, return_inverse=True)
    share = np.bincount(place, hits) / np.bincount(place)
    order = np.argsort(share, kind="stable")
    names_ = [str(arrays["class_names"][label]) for label in present[order]]
    few = len(names_) <= NAMED_CLASSES
    figure = Figure(
        figsize=(6, 0.5 + 0.24 * len(names_)) if few else (6, 3.6), layout="constrained"
    )
    axis = figure.subplots()
    if few:
        axis.barh(np.arange(len(names_)), share[order])
        axis.set_yticks(np.arange(len(names_)))
        for tick in axis.set_yticklabels(names_, fontsize=8):
            tick.set_parse_math(False)
        axis.invert_yaxis()
        axis.set(xlabel="accuracy", xlim=(0, 1))
    else:
        axis.plot(np.arange(len(names_)), share[order])
        axis.set(xlabel="classes, the hardest first", ylabel="accuracy", ylim=(0, 1))
        hardest = ", ".join(names_[:5])
        axis.set_title(f"hardest: {hardest}", fontsize=8, parse_math=False)
    axis.grid(alpha=0.3)
    return figure


def _load(file: pathlib.Path) -> dict[str, np.ndarray]:
    with np.load(file, allow_pickle=False) as stored:
        return dict(stored)


def as_seen(arrays: Mapping[str, np.ndarray], config: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Put the stored views through the run's photometry; levels in [0, 1].

    Means and deviations are left out, since nobody can look at them.
    """
    train = config["train"]
    plain = [re.sub(r"normalise\([^|]*\)", "normalise('unit')", pipe) for pipe in train["augment"]]
    change = jax.jit(augment.make(plain, train.get("mix") or "", len(arrays["class_names"])))
    batch = {name: arrays[name] for name in ("views", "label", "mask") if name in arrays}
    seen = change(jax.random.key(config["seed"]), batch)["views"]
    return {**arrays, "views": np.clip(np.asarray(seen), 0, 1)}


def headlines(run: table.Run, classes: int | None) -> list[Number]:
    """Up to six of the columns of the table, each beside what a guess would have.

    Of a network with parts each is that of its better part.
    """
    published = run.config.get("published") or {}
    found = []
    for column in table.COLUMNS:
        if column.title not in (*GUESSES, *CONSTANT):
            continue
        parts = {part: run.value(column, part) for part in table.PARTS}
        known = {part: value for part, value in parts.items() if value is not None}
        if known:
            part = max(known, key=lambda part: known[part])
            name = column.title if part == "all" else f"{column.title}, {part} part"
            chance = CONSTANT.get(column.title)
            if classes and column.title in GUESSES:
                chance = min(1.0, GUESSES[column.title] / classes)
            found.append(Number(name, known[part], chance, published.get(column.title)))
    return found[:6]


def facts(run: table.Run, arrays: Mapping[str, np.ndarray] | None) -> list[tuple[str, str]]:
    """Say what was run, on what data and machine, for how long, at which commit."""
    config, last = run.config, run.rows[-1]
    told = [("method", _with_arguments(config.get("method")))]
    if config.get("init_from"):
        told.append(("begins with", f"{config['init_from']} ({run.encoder})"))
    told.append(("backbone", _with_arguments(config.get("backbone"))))
    source = (config.get("train") or {}).get("source")
    if source:
        told.append(("data", _with_arguments(source)))
    if arrays is not None and "class_names" in arrays:
        names_ = [str(name) for name in arrays["class_names"]]
        more = f" and {len(names_) - 10} more" if len(names_) > 10 else ""
        told.append(("classes", f"{len(names_)}: {', '.join(names_[:10])}{more}"))
    epochs = f", {last['epoch']:.4g} epochs" if "epoch" in last else ""
    of = f" of {config['batch_size']} examples" if "batch_size" in config else ""
    told.append(("steps", f"{last['step']}{of}{epochs}"))
    told.append(("seed", str(config.get("seed"))))
    origin = provenance.read(run.folder)
    names_of = ("command", "commit", "date", "devices")
    told += [(name, str(origin[name])) for name in names_of if origin.get(name)]
    return told


def _with_arguments(described: Any) -> str:
    """`name (argument=value, ...)` of a part of a config."""
    if not isinstance(described, Mapping) or "name" not in described:
        return str(described)
    rest = ", ".join(
        f"{key}={_with_arguments(value)}"
        for key, value in described.items()
        if key != "name" and not key.endswith("_digest") and value not in (None, "", [], {})
    )
    return f"{described['name']} ({rest})" if rest else str(described["name"])


def in_words(method: Mapping[str, Any] | None) -> str:
    """What a method is, in the words of its own file."""
    name = (method or {}).get("name")
    if not name:
        return "A run without a method"
    said = names.module("methods", name).__doc__ or name
    return said.partition("\n")[0].rstrip(".")


def write(workdir: pathlib.Path) -> pathlib.Path:
    """Write `figures/*.png` and `report.html` of a run; return the page's path.

    Shows what `python -m jaxequi.probe` drew of the run, too.

    Raises:
      ValueError: the directory holds no run.
    """
    run = table.read(workdir)
    config = run.config
    sets = [name for name, part in config.items() if isinstance(part, dict) and "source" in part]
    made = learning_curves(run.rows, sets, config.get("show") or ())
    seen = _load(workdir / EXAMPLES_FILE) if (workdir / EXAMPLES_FILE).exists() else None
    if seen is not None and seen["views"].ndim == 5:  # an evaluation may read features instead
        alt = "Training images after all augmentation, each under the name of its class"
        made[Panel("What the network sees", "examples", alt)] = examples(as_seen(seen, config))
    for file in sorted(workdir.glob("features_*.npz")):
        arrays, which = _load(file), file.stem.partition("_")[2]
        if "representation" in arrays and arrays["representation"].shape[-1] > 1:
            alt = f"Singular values of the representations of {which}, largest first, by part"
            title = f"Singular values ({which})"
            made[Panel(title, f"spectrum_{which}", alt)] = spectrum(arrays)
            alt = f"First two principal components of the representations of {which}, by class"
            title = f"Principal components ({which})"
            made[Panel(title, f"projection_{which}", alt)] = projection(arrays)
        for logits in [name for name in arrays if name.startswith(LOGITS) and "label" in arrays]:
            # A classifier's own, or those of a head on a frozen network.
            head = logits.partition("/")[2].removeprefix("classification-")
            said, file_of = (f"{which}, {head}", f"{which}_{head}") if head else (which, which)
            hits = np.mean(arrays[logits].argmax(-1) == arrays["label"][:, None])
            alt = f"Accuracy of each class of {said}, the hardest first: {hits:.3f} over all"
            panel = Panel(f"Accuracy by class ({said})", f"classes_{file_of}", alt)
            made[panel] = by_class(arrays, logits)
        if "turned_logits" in arrays:
            found = turned.accuracies(arrays["turned_logits"], arrays["label"])
            alt = f"Accuracy on {which} by the angle of the image: mean {np.mean(found):.3f}"
            title = f"Accuracy by angle ({which})"
            made[Panel(title, f"angles_{which}", alt)] = plots.circle({which: found})

    if (config.get("method") or {}).get("name") == "eqinv":
        made |= _of_eqinv(workdir, config)

    folder = workdir / FIGURES
    folder.mkdir(exist_ok=True)
    for panel, figure in made.items():
        figure.savefig(folder / f"{panel.file}.png", dpi=90)
    shown = [*made, *(p for p in PROBED if (folder / f"{p.file}.png").exists())]
    compared: list[list[str]] = []
    if config.get("compare"):
        runs = {name: table.read(workdir / name) for name in config["compare"]}
        compared = table.beside({**runs, "this run": run})
    classes = len(seen["class_names"]) if seen is not None and "class_names" in seen else None
    page = workdir / "report.html"
    page.write_text(
        render(
            Page(
                run=workdir.resolve().name,
                what=in_words(config.get("method")),
                facts=facts(run, seen),
                numbers=headlines(run, classes),
                compared=compared,
                panels=[(p, (folder / f"{p.file}.png").read_bytes()) for p in shown],
                metrics=run.rows[-1],
                config=config,
            )
        )
    )
    return page


def _of_eqinv(workdir: pathlib.Path, config: Mapping[str, Any]) -> dict[Panel, Figure]:
    """What EqInv made of its data, and how it and the runs beside it bear a shift."""
    from jaxequi.runs import environments  # reads the checkpoint, which no other figure needs

    features = {file.stem: _load(file) for file in sorted(workdir.glob("features_*.npz"))}
    made = {
        Panel(title, name, title): figure
        for title, (name, figure) in environments.figures(workdir, features).items()
    }
    beside = {name: workdir / name / "features_testgt.npz" for name in config.get("compare", ())}
    judged = {name: _load(file) for name, file in beside.items() if file.exists()}
    judged["this run"] = features.get("features_testgt", {})
    known = {name: seen for name, seen in judged.items() if {"logits", "latent"} <= set(seen)}
    if known:
        title = "Accuracy by the shift of the context (testgt)"
        alt = f"Accuracy of {', '.join(known)} by how far the context lies from the class's own"
        made[Panel(title, "shift", alt)] = environments.by_shift(known)
    return made
