"""Make the notebooks from their scripts: python notebooks/make.py

A script is in jupytext's percent format (`# %%` begins a cell, `# %% [markdown]` one of text), and
editors open it as a notebook, too. What all notebooks begin with is added here: the badge that
opens them on Colab, and the cell that installs.
"""

from __future__ import annotations

import json
import pathlib
import re
from typing import Any

HERE = pathlib.Path(__file__).parent
REPOSITORY = "jaxequi/jaxequi"  # on GitHub: from where Colab opens and installs
BADGE = "[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]({})"
COLAB = f"https://colab.research.google.com/github/{REPOSITORY}/blob/main/notebooks/"
INSTALL = f"""\
# On Colab this installs the package; where it is installed, nothing happens.
import importlib.util
import pathlib
import subprocess
import sys

if importlib.util.find_spec("jaxequi") is None:
    source = "https://github.com/{REPOSITORY}"
    subprocess.run(["git", "clone", "--depth=1", source, "source"], check=True)
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "-e", "source[notebooks]"]
    subprocess.run(pip, check=True)
    sys.path.insert(0, "source")

import jaxequi

sys.path.insert(0, str(pathlib.Path(jaxequi.__file__).parents[1]))  # where configs/ lies
%matplotlib inline
"""


def scripts() -> list[pathlib.Path]:
    """The scripts, one a notebook."""
    return sorted(file for file in HERE.glob("*.py") if file.name != "make.py")


def cells(script: str) -> list[tuple[str, str]]:
    """Kind and text of each cell of a script: "markdown" or "code"."""
    _, *parts = re.split(r"^# %%(.*)\n", script, flags=re.MULTILINE)
    found = []
    for mark, text in zip(parts[::2], parts[1::2], strict=True):
        text = text.strip("\n")
        if mark.strip() == "[markdown]":
            found.append(("markdown", re.sub(r"^# ?", "", text, flags=re.MULTILINE)))
        else:
            found.append(("code", text))
    return found


def notebook(script: pathlib.Path) -> str:
    """A script as the text of a notebook."""
    (_, title), *rest = cells(script.read_text())
    badge = BADGE.format(f"{COLAB}{script.stem}.ipynb")
    made: list[dict[str, Any]] = []
    begin = [("markdown", f"{badge}\n\n{title}"), ("code", INSTALL.strip())]
    for number, (kind, text) in enumerate([*begin, *rest]):
        cell = {"cell_type": kind, "id": f"c{number}", "metadata": {}}
        if kind == "code":
            cell |= {"execution_count": None, "outputs": []}
        made.append({**cell, "source": text.splitlines(keepends=True)})
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    metadata = {"kernelspec": kernel, "language_info": {"name": "python"}}
    whole = {"cells": made, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}
    return json.dumps(whole, indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    for each in scripts():
        each.with_suffix(".ipynb").write_text(notebook(each))
