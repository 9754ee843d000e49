"""The page of many runs: `index.html` with table and figures, `table.md`, `table.csv`."""

from __future__ import annotations

import base64
import html
import pathlib
from collections.abc import Sequence

from matplotlib.figure import Figure

from jaxequi.errors import Refusal
from jaxequi.runs import comparison_figures as figures
from jaxequi.runs import table


def write(folders: Sequence[pathlib.Path], out: pathlib.Path) -> pathlib.Path:
    """Write table and figures of runs into a folder; return the page's path.

    What predictors find is shown of methods whose held-out features an evaluation
    (configs/evals.py) has kept; the first seed of each.

    Raises:
      ValueError: a folder holds no run, or `out` cannot be written.
    """
    trained = table.join([table.read(folder) for folder in folders])
    runs: dict[str, list[table.Run]] = {}
    for label, one in zip(table.labels(trained), trained, strict=True):
        runs.setdefault(label, []).append(one.run)
    predictors = {}
    for label, seeds in runs.items():
        found = figures.predictor(seeds[0].folder)
        if found is not None:
            predictors[label] = found

    made: dict[str, Figure] = {"rotation-r2": figures.curves(runs)}
    if predictors:
        made["ranks"] = figures.ranks(predictors)
    for number, (label, predictor) in enumerate(predictors.items()):
        made[f"found-{number}"] = figures.found(label, predictor)
        made[f"sweep-{number}"] = figures.sweep(label, predictor)

    lines = table.rows(trained)
    trends = table.trends(lines)
    try:
        (out / "figures").mkdir(parents=True, exist_ok=True)
        (out / "table.csv").write_text(table.to_csv(lines))
        told = "".join(f"- {trend}\n" for trend in trends)
        (out / "table.md").write_text(f"{table.markdown(table.cells(lines))}\n{told}")
        images = []
        for name, figure in made.items():
            file = out / "figures" / f"{name}.png"
            figure.savefig(file, dpi=90)
            data = base64.b64encode(file.read_bytes()).decode()
            images.append(f'<p><img alt="{name}" src="data:image/png;base64,{data}"></p>')
        page = out / "index.html"
        page.write_text(_page(table.cells(lines), trends, images, folders))
    except OSError as error:
        raise Refusal(f"{out} cannot be written: {error.strerror}; give another --out") from error
    return page


def _page(
    cells: Sequence[Sequence[str]],
    trends: Sequence[str],
    images: Sequence[str],
    folders: Sequence[pathlib.Path],
) -> str:
    def line(values: Sequence[str], tag: str) -> str:
        return f"<tr>{''.join(f'<{tag}>{html.escape(v)}</{tag}>' for v in values)}</tr>"

    head, *body = cells
    items = "".join(f"<li>{html.escape(trend)}</li>" for trend in trends)
    told = f"<h2>Trends of SIE's paper</h2><ul>{items}</ul>" if trends else ""
    return (
        "<!doctype html><meta charset=utf-8><title>runs</title>"
        "<style>body{font:15px system-ui;margin:2em}img{max-width:100%}"
        "td,th{padding:0 1em .2em 0;text-align:left;white-space:nowrap}</style>"
        f"<h1>{len(folders)} runs</h1>"
        f"<table>{line(head, 'th')}{''.join(line(values, 'td') for values in body)}</table>"
        "<p>A pooled rotation R2 of 0.23 is what a constant guess scores. "
        "Mean ± standard deviation (seeds).</p>"
        f"{told}<h2>Figures</h2>{''.join(images)}"
        f"<h2>Runs</h2><pre>{html.escape(chr(10).join(map(str, folders)))}</pre>\n"
    )
