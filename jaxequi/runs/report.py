"""A run directory as figures and one HTML page.

Reads what the run left (`config.json`, `metrics.jsonl`, `examples.npz`, `features_*.npz`) and
writes `figures/*.png` and `report.html`, which holds the figures and can be sent by itself.
"""

from __future__ import annotations

import base64
import html
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from jaxequi.errors import Refusal
from jaxequi.evals import turned
from jaxequi.groups import quaternions
from jaxequi.objectives.regression import POOLED_R2_FLOOR
from jaxequi.probes import pictures
from jaxequi.runs import table
from jaxequi.train import log
from jaxequi.train.workdir import CONFIG_FILE, EXAMPLES_FILE

FIGURES = "figures"  # below the folder of a run
PROBED = {"Equivariance error by layer": "equivariance", "Maps of a turned image": "maps"}
LATENT_NAMES = ("rot x", "rot y", "rot z", "floor hue", "light theta", "light phi", "light hue")


def curves(rows: list[dict[str, Any]]) -> Figure:
    """Every metric over the steps; metrics that differ in the last word only share a panel.

    A metric that was taken once, or that never changes (the k of kNN), is no curve; it is in the
    table of the page.
    """
    taken: dict[str, list[float]] = {}
    for row in rows:
        for name, value in row.items():
            taken.setdefault(name, []).append(value)
    panels: dict[str, list[str]] = {}
    for name, values in taken.items():
        if name not in ("step", "epoch") and (len(set(values)) > 1 or len(rows) == 1):
            panels.setdefault(name.rpartition("/")[0] or name, []).append(name)
    columns = 3
    lines = -(-len(panels) // columns)
    figure = Figure(figsize=(15, 3.1 * lines), layout="tight")
    axes = figure.subplots(lines, columns, squeeze=False)
    for axis, (panel, members) in zip(axes.flat, sorted(panels.items()), strict=False):
        for name in sorted(members):
            points = [(row["step"], row[name]) for row in rows if name in row]
            style = "o-" if len(points) < 8 else "-"
            axis.plot(*zip(*points, strict=True), style, ms=3, label=name.rpartition("/")[2])
        if panel.endswith("r2"):
            axis.axhline(POOLED_R2_FLOOR, color="grey", ls=":", lw=1)
            axis.set_ylim(-0.1, 1)
        axis.set_title(members[0] if len(members) == 1 else panel, fontsize=10)
        axis.set_xlabel("step", fontsize=8)
        axis.grid(alpha=0.3)
        if len(members) > 1:
            axis.legend(fontsize=7)
    for axis in axes.flat[len(panels) :]:
        axis.axis("off")
    return figure


def examples(arrays: Mapping[str, np.ndarray]) -> Figure:
    """The first pictures that the network saw, view pairs in a row, with their latents."""
    views, latents = arrays["views"], arrays.get("latent")
    count, pairs = min(len(views), 12), views.shape[1]
    columns = 3 if pairs > 1 else 6
    lines = -(-count // columns)
    figure = Figure(figsize=(1.5 * columns * pairs, 2.2 * lines), layout="tight")
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
        axis.set_title("\n".join(title), fontsize=7, parse_math=False)  # names may have a $
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


def _load(file: pathlib.Path) -> dict[str, np.ndarray]:
    with np.load(file, allow_pickle=False) as stored:
        return dict(stored)


def write(workdir: pathlib.Path) -> pathlib.Path:
    """Write `figures/*.png` and `report.html` of a run; return the page's path.

    Shows what `python -m jaxequi.probe` drew of the run, too.

    Raises:
      ValueError: the directory holds no run.
    """
    rows = log.read_metrics(workdir)
    if not rows or not (workdir / CONFIG_FILE).exists():
        raise Refusal(f"{workdir} holds no run: no {CONFIG_FILE} or no logged step")
    config = json.loads((workdir / CONFIG_FILE).read_text())
    made = {"Learning curves": ("curves", curves(rows))}
    seen = _load(workdir / EXAMPLES_FILE) if (workdir / EXAMPLES_FILE).exists() else None
    if seen is not None and seen["views"].ndim == 5:  # an evaluation may read features instead
        made["What the network sees"] = ("examples", examples(seen))
    for file in sorted(workdir.glob("features_*.npz")):
        arrays, which = _load(file), file.stem.partition("_")[2]
        if "representation" not in arrays:
            continue
        if arrays["representation"].shape[-1] > 1:
            made[f"Singular values ({which})"] = (f"spectrum_{which}", spectrum(arrays))
            made[f"Principal components ({which})"] = (f"projection_{which}", projection(arrays))
        if "turned_logits" in arrays:
            angles = pictures.circle(
                {which: turned.accuracies(arrays["turned_logits"], arrays["label"])}
            )
            made[f"Accuracy by angle ({which})"] = (f"angles_{which}", angles)

    if (config.get("method") or {}).get("name") == "eqinv":
        from jaxequi.runs import environments  # reads the checkpoint, which no other figure needs

        sets = sorted(workdir.glob("features_*.npz"))
        features = {file.stem: _load(file) for file in sets}
        made |= environments.figures(workdir, features)
        beside = {
            name: workdir / name / "features_testgt.npz" for name in config.get("compare", ())
        }
        judged = {name: _load(file) for name, file in beside.items() if file.exists()}
        judged["this run"] = features.get("features_testgt", {})
        known = {name: seen for name, seen in judged.items() if {"logits", "latent"} <= set(seen)}
        if known:
            shifted = environments.by_shift(known)
            made["Accuracy by the shift of the context (testgt)"] = ("shift", shifted)

    folder = workdir / FIGURES
    folder.mkdir(exist_ok=True)
    for name, figure in made.values():
        figure.savefig(folder / f"{name}.png", dpi=90)
    shown = {title: name for title, (name, _) in made.items()}
    shown |= {t: name for t, name in PROBED.items() if (folder / f"{name}.png").exists()}
    body = []
    for title, name in shown.items():
        data = base64.b64encode((folder / f"{name}.png").read_bytes()).decode()
        body.append(f'<h2>{title}</h2><img alt="{name}" src="data:image/png;base64,{data}">')
    last = "".join(
        f"<tr><td>{html.escape(name)}</td><td>{value:.5g}</td></tr>"
        for name, value in sorted(rows[-1].items())
    )
    compared = ""
    if config.get("compare"):
        runs = {name: table.read(workdir / name) for name in config["compare"]}
        cells = table.beside({**runs, "this run": table.read(workdir)})
        lines = ("".join(f"<td>{html.escape(cell)}</td>" for cell in line) for line in cells)
        compared = f"<h2>Comparison</h2><table><tr>{'</tr><tr>'.join(lines)}</tr></table>"
    page = workdir / "report.html"
    page.write_text(
        f"<!doctype html><meta charset=utf-8><title>{html.escape(workdir.name)}</title>"
        "<style>body{font:15px system-ui;margin:2em;max-width:1200px}img{max-width:100%}"
        "td{padding:0 1em 0 0}pre{background:#f4f4f4;padding:1em;overflow:auto}</style>"
        f"<h1>{html.escape(workdir.name)}</h1>{compared}{''.join(body)}"
        f"<h2>Last logged step</h2><table>{last}</table>"
        f"<h2>Config</h2><pre>{html.escape(json.dumps(config, indent=2))}</pre>\n"
    )
    return page
