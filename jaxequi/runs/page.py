"""The page of a run: one HTML file that holds all it shows, and can be sent by itself.

It reads from top to bottom: what was run, the numbers that matter, curves, figures; the rest is
folded. No script, nothing from elsewhere; it follows the reader's light or dark, and the width of
the window. Whatever comes from data is escaped.
"""

from __future__ import annotations

import base64
import dataclasses
import html
import json
from collections.abc import Mapping, Sequence
from typing import Any

STYLE = """
:root{color-scheme:light dark;--ink:#1b1b1f;--soft:#55555e;--paper:#fff;--line:#d0d0d7;
--box:#f3f3f6}
@media(prefers-color-scheme:dark){:root{--ink:#e8e8ec;--soft:#b4b4be;--paper:#17171b;--line:#44444d;
--box:#232329}}
*{box-sizing:border-box}
body{font:16px/1.5 system-ui,sans-serif;margin:0 auto;padding:1.5rem;max-width:75rem;
color:var(--ink);background:var(--paper);overflow-wrap:anywhere}
h1{line-height:1.2;margin:.2rem 0}h2{margin:2.2rem 0 .6rem;border-top:1px solid var(--line);
padding-top:1rem}
p.kicker{color:var(--soft);margin:0}
dl{display:grid;grid-template-columns:max-content 1fr;gap:.2rem 1.2rem;margin:1rem 0}
dt{color:var(--soft)}dd{margin:0}
.numbers{display:flex;flex-wrap:wrap;gap:.8rem;padding:0;list-style:none}
.numbers li{background:var(--box);border-radius:.5rem;padding:.7rem 1rem;min-width:9rem}
.numbers b{display:block;font-size:1.7rem;line-height:1.2}
.numbers span{display:block;color:var(--soft);font-size:.9rem}
.figures{display:flex;flex-wrap:wrap;gap:1rem}figure{margin:0}
img{max-width:100%;height:auto;background:#fff;border-radius:.3rem}
.wide{overflow-x:auto}table{border-collapse:collapse}
th,td{text-align:left;padding:.15rem 1.2rem .15rem 0;border-bottom:1px solid var(--line);
overflow-wrap:normal}
details{margin:1rem 0}summary{cursor:pointer;font-weight:600}
pre{background:var(--box);padding:1rem;overflow:auto;border-radius:.5rem;font-size:.85rem}
@media(max-width:40rem){body{padding:.8rem}dl{grid-template-columns:1fr;gap:0}dd{margin-bottom:.5rem}}
"""


@dataclasses.dataclass(frozen=True)
class Number:
    """One of the numbers that matter.

    Attributes:
      name: of the measurement, in words.
      value: what the run has.
      chance: what guessing gives, or None where that is not known.
      published: what its authors report, or None.
    """

    name: str
    value: float
    chance: float | None = None
    published: float | None = None


@dataclasses.dataclass(frozen=True)
class Panel:
    """A figure with its heading and what it says to those who do not see it.

    Attributes:
      title: the heading; figures of one title stand together.
      file: its name in the folder of figures, without the ending.
      alt: the text in its place.
      folded: whether the reader must ask for it.
    """

    title: str
    file: str
    alt: str
    folded: bool = False


@dataclasses.dataclass(frozen=True)
class Page:
    """All that a page shows.

    Attributes:
      run: name of the run.
      what: the method, in words.
      facts: of data, machine, command and the like, in order.
      numbers: those that matter.
      compared: rows of a table of runs, its head first; none without rows.
      panels: each with the bytes of its PNG.
      metrics: the last of each.
      config: as it was saved.
    """

    run: str
    what: str
    facts: Sequence[tuple[str, str]]
    numbers: Sequence[Number]
    compared: Sequence[Sequence[str]]
    panels: Sequence[tuple[Panel, bytes]]
    metrics: Mapping[str, float]
    config: Mapping[str, Any]


def render(page: Page) -> str:
    """Write the page as HTML."""
    run = html.escape(page.run)
    facts = "".join(
        f"<dt>{html.escape(term)}</dt><dd>{html.escape(said)}</dd>" for term, said in page.facts
    )
    parts = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width,initial-scale=1">',
        f"<title>{run}</title><style>{STYLE}</style></head><body><main>",
        f'<p class="kicker">{run}</p><h1>{html.escape(page.what)}</h1><dl>{facts}</dl>',
    ]
    if page.numbers:
        items = "".join(map(_number, page.numbers))
        parts.append(f'<h2>Results</h2><ul class="numbers">{items}</ul>')
    if page.compared:
        parts.append(f"<h2>Comparison</h2>{_table(page.compared)}")
    shown: dict[str, list[str]] = {}
    folded: dict[str, list[str]] = {}
    for panel, data in page.panels:
        of_title = (folded if panel.folded else shown).setdefault(panel.title, [])
        of_title.append(_figure(panel, data))
    for title, figures in shown.items():
        parts.append(f'<h2>{html.escape(title)}</h2><div class="figures">{"".join(figures)}</div>')
    parts.append("<h2>Everything else</h2>")
    for title, figures in folded.items():
        parts.append(_folded(title, f'<div class="figures">{"".join(figures)}</div>'))
    rows = [["metric", "value"], *([n, f"{v:.5g}"] for n, v in sorted(page.metrics.items()))]
    config = html.escape(json.dumps(page.config, indent=2))
    parts.append(_folded("Last logged step", _table(rows)))
    # What scrolls can be reached by the keyboard.
    parts.append(_folded("Config", f'<pre tabindex="0">{config}</pre>'))
    parts.append("</main></body></html>\n")
    return "".join(parts)


def _number(number: Number) -> str:
    beside = [
        f"<span>{said} {value:.3g}</span>"
        for said, value in (("chance", number.chance), ("published", number.published))
        if value is not None
    ]
    return f"<li>{html.escape(number.name)}<b>{number.value:.3f}</b>{''.join(beside)}</li>"


def _table(rows: Sequence[Sequence[str]]) -> str:
    head, *body = rows
    top = "".join(f'<th scope="col">{html.escape(cell)}</th>' for cell in head)
    lines = "".join(
        f'<tr><th scope="row">{html.escape(first)}</th>'
        + "".join(f"<td>{html.escape(cell)}</td>" for cell in rest)
        + "</tr>"
        for first, *rest in body
    )
    return (
        '<div class="wide" tabindex="0"><table><thead>'
        f"<tr>{top}</tr></thead><tbody>{lines}</tbody></table></div>"
    )


def _figure(panel: Panel, data: bytes) -> str:
    source = base64.b64encode(data).decode()
    alt = html.escape(panel.alt, quote=True)
    return f'<figure><img alt="{alt}" src="data:image/png;base64,{source}"></figure>'


def _folded(title: str, inner: str) -> str:
    return f"<details><summary>{html.escape(title)}</summary>{inner}</details>"
