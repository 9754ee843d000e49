"""How the site is built: `sphinx-build -W -b html docs docs/_build/html`, without a network."""

from __future__ import annotations

import ast
import json
import pathlib
import re
import sys
from typing import ClassVar

from docutils import nodes
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective

LOGGER = logging.getLogger(__name__)
ROOT = pathlib.Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

project = "jaxequi"
author = "the authors of jaxequi"
html_title = "jaxequi"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build", "figures/*.py", "extend/examples"]
html_theme = "furo"
html_show_sphinx = False
html_show_copyright = False
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_math_renderer = "mathml"

myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
suppress_warnings = ["config.cache"]  # a function in this file is no value to be pickled

smartquotes = False  # of "--config" they would make a dash
default_role = "code"
add_module_names = False
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # shapes stand in the docstrings, and say more
autodoc_preserve_defaults = True
autodoc_default_options = {"members": True}
# Blender, of which a wheel is for one version of Python alone, and extras.
autodoc_mock_imports = ["bpy", "mlflow", "wandb"]
napoleon_use_ivar = True
napoleon_use_rtype = False

SECTIONS = ("Args:", "Args and result", "Returns:", "Raises:", "Attributes:", "Yields:")


def to_rst(text: str) -> list[str]:
    """Turn a docstring, written as Markdown with Google's sections, into reStructuredText.

    Code in single backquotes is code, what stands indented outside a section is shown as it is,
    and no other letter means anything.
    """
    out: list[str] = []
    section, block, example = "", False, False
    for line in text.expandtabs().split("\n"):
        indented = line.startswith("  ")
        if example and line.strip():
            out.append(line)
            continue
        example = False
        if line.lstrip().startswith(">>>"):
            example, block = True, False
            out += ["", line] if out and out[-1].strip() else [line]
            continue
        if line and not indented:
            if block:
                out.append("")
            section, block = line if line in SECTIONS else "", False
        starts_item = re.match(r"[-*] |\d+\. ", out[-1].lstrip()) if out else None
        if indented and not section and not block and not (starts_item and out[-1].strip()):
            block = True
            out += ["::", ""] if not (out and out[-1].strip()) else ["", "::", ""]
        if section == "Attributes:":  # napoleon knows one name a line
            line = re.sub(r"^(\s+\w+), ([\w, ]+): ", r"\1: and `\2`: ", line)
        out.append(line if block or not line.strip() else _escaped(line))
    return out


def _escaped(line: str) -> str:
    """Write code in double backquotes, and take their meaning from other signs of markup."""
    line = re.sub(r"^(\s*(?:[\w, ]+: )?[a-zA-Z])\. ", r"\1\\. ", line)  # no item of a list
    parts = line.split("`")
    if len(parts) % 2 == 0:  # code that goes on in the next line
        return re.sub(r"([\\*_|`])", r"\\\1", line)
    for at, part in enumerate(parts):
        if at % 2 == 0:
            body = re.sub(r"(\\(?!\.)|[*_|])", r"\\\1", part)
            parts[at] = re.sub(r"^(\s*)\\\* ", r"\1* ", body)
        else:
            before = parts[at - 1][-1:]
            after = parts[at + 1][:1]
            left = "\\ " if before and not before.isspace() and before not in "([{<'\"-/:" else ""
            right = "\\ " if after.isalnum() else ""
            parts[at] = f"{left}``{part}``{right}"
    return "".join(parts)


def docstring(app, what, name, obj, options, lines):
    """Let autodoc and napoleon see reStructuredText."""
    del app, what, options
    ours = str(getattr(obj, "__module__", None) or name).startswith("jaxequi")
    lines[:] = to_rst("\n".join(lines)) if ours else []  # a field may hold a function of JAX


def skip(app, what, name, obj, skipped, options):
    """Leave out the fields of a NamedTuple where Python alone has said something of them."""
    del app, what, name, options
    said = str(getattr(obj, "__doc__", ""))
    return True if said.startswith("Alias for field number") else skipped


class Config(SphinxDirective):
    """What a config file says of itself: its docstring, which is Markdown."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Show the docstring of `configs/NAME.py`, read and not imported."""
        file = ROOT / "configs" / f"{self.arguments[0]}.py"
        self.env.note_dependency(str(file))
        text = ast.get_docstring(ast.parse(file.read_text())) or ""
        return self.parse_text_to_nodes(text)


class Measured(SphinxDirective):
    """Rows of a page of docs/results: `{measured} sie_frozen`, with `:variants: a, b` some."""

    required_arguments = 1
    option_spec: ClassVar = {"variants": str}

    def run(self) -> list[nodes.Node]:
        """Show the numbers of the rows, and the columns in which one of them has something."""
        name = self.arguments[0]
        file = ROOT / "docs" / "results" / f"{name}.md"
        self.env.note_dependency(str(file))
        table = [line for line in file.read_text().splitlines() if line.startswith("| ")]
        cells = ([c.strip() for c in re.split(r"(?<!\\)\|", line)[1:-1]] for line in table)
        head, _, *rows = cells
        wanted = [v.strip() for v in self.options.get("variants", "").split(",") if v.strip()]
        trained = [row[head.index("config")].partition("<br>")[0].strip("`") for row in rows]
        variants = [config.partition(":")[2] for config in trained]
        if missing := {*wanted} - {*variants}:
            raise self.error(f"{name} has no variant {', '.join(sorted(missing))}")
        rows = [row for row, of in zip(rows, variants) if of in wanted or not wanted]
        numbers = range(head.index("config"))
        shown = [i for i in (*numbers, head.index("seeds")) if any(row[i] for row in rows)]
        lines = [head, ["---"] * len(head), *rows]
        text = "\n".join(f"| {' | '.join(line[i] for i in shown)} |" for line in lines)
        text += f"\n\n[Commits, machines, commands](/results/{name}.md)"
        return self.parse_text_to_nodes(text)


class Zoo(SphinxDirective):
    """The small models of docs/zoo.json: a table, and the commands of each."""

    def run(self) -> list[nodes.Node]:
        """Show what the file says."""
        file = ROOT / "docs" / "zoo.json"
        self.env.note_dependency(str(file))
        head = "name", "what it is", "numbers", "size", "sha256"
        head += "config", "seed", "commit", "date", "hardware"
        lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
        blocks = []
        for row in json.loads(file.read_text()):
            told = [(n, v) for n, v in row["metrics"].items() if "top1" in n or "accuracy" in n]
            numbers = ", ".join(f"{name} {value:.3f}" for name, value in told)
            size, sha256 = f"{row['bytes'] / 1024:.0f} KiB", f"`{row['sha256'][:12]}`"
            shown = f"`{row['name']}`", row["about"], numbers, size, sha256
            commit = f"`{row['commit'][:12]}`"
            shown += f"`{row['config']}`", str(row["seed"]), commit, row["date"], row["hardware"]
            lines.append(f"| {' | '.join(shown)} |")
            blocks += ["```", row["train"], row["take"], "```", ""]
        return self.parse_text_to_nodes("\n".join([*lines, "", *blocks]))


def results(app, doctree):
    """Mark the tables of what was measured, whose cells are one line each (_static/site.css)."""
    folder, _, page = app.env.docname.partition("/")
    if folder == "results" and page not in ("index", "published"):
        for table in doctree.findall(nodes.table):
            table["classes"].append("results")


def mathml(self, node) -> None:
    """Write a formula as MathML, which browsers draw themselves."""
    from latex2mathml.converter import convert

    display = "block" if isinstance(node, nodes.math_block) else "inline"
    made = convert(node.astext(), display=display)
    if "<mi>\\" in made or "<mi>&</mi>" in made:  # left as it is, for unknown
        LOGGER.warning("no MathML of %s", node.astext(), location=node)
    self.body.append(made)
    raise nodes.SkipNode


def included(app, relative_path, parent_docname, content):
    """Give links in a README of the repository, which a page includes, a place of the site."""
    del app, relative_path, parent_docname
    content[0] = content[0].replace("(methods/README.md)", "(extend/method.md)")


def setup(app):
    """Register what this file adds to Sphinx."""
    app.connect("autodoc-process-docstring", docstring, priority=400)  # before napoleon
    app.connect("autodoc-skip-member", skip)
    app.connect("include-read", included)
    app.connect("doctree-read", results)
    app.add_directive("config", Config)
    app.add_directive("measured", Measured)
    app.add_directive("zoo", Zoo)
    app.add_html_math_renderer("mathml", (mathml, None), (mathml, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
