"""The site: its commands name configs that exist, its links lead somewhere, its examples run."""

from __future__ import annotations

import doctest
import importlib
import pathlib
import re
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxequi
from jaxequi import experiment, names
from jaxequi.probes import check
from jaxequi.train import log, loop

ROOT = pathlib.Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *(f for f in sorted(DOCS.rglob("*.md")) if "_build" not in f.parts)]
INCLUDED = [ROOT / "jaxequi/README.md", ROOT / "jaxequi/methods/README.md"]
INCLUDED += [ROOT / "launch/README.md", ROOT / "configs/detection/README.md"]
CONFIG = re.compile(r"\b(?:configs|docs/extend/examples|tests/proof)/[a-zA-Z\d_/]+\.py(?::[\w,]+)?")
LINK = re.compile(r"\]\(([^)\s]+)\)")
EXAMPLES = "docs.extend.examples"


def page_name(file: pathlib.Path) -> str:
    return str(file.relative_to(ROOT))


@pytest.fixture(params=[*PAGES, *INCLUDED], ids=page_name)
def page(request):
    return request.param


def test_configs_that_a_page_names_exist(page):
    for found in set(CONFIG.findall(page.read_text())):
        file, _, words = found.partition(":")
        if pathlib.Path(file).stem.isupper():  # FAMILY stands for any
            continue
        assert (ROOT / file).exists(), found
        words = "" if words.isupper() else words  # and so does VARIANT
        # The file is imported under the name by which configs import each other.
        module = importlib.import_module(file.removesuffix(".py").replace("/", "."))
        if hasattr(module, "get_config"):
            module.get_config(words or None)


def test_links_lead_to_files_and_headings(page):
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    for link in LINK.findall(text):
        target, _, heading = link.partition("#")
        if "://" in link:
            continue
        file = page.parent / target if target else page
        assert file.exists(), f"{page_name(page)}: {link}"
        if heading:
            assert heading in headings(file), f"{page_name(page)}: {link} among {headings(file)}"


def headings(file: pathlib.Path) -> set[str]:
    """Anchors of a page's headings, as GitHub makes them."""
    found = re.findall(r"^#+ (.*)$", file.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in found}


def test_the_readme_is_short_and_has_the_two_commands():
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) < 250
    assert "\n`pip install -e . && python -m jaxequi.main --config=configs/sie.py`\n" in text
    assert '\n`pip install -e ".[dev]" && pytest`\n' in text


@pytest.mark.parametrize("method", names.choices("methods"))
def test_every_method_has_a_page(method):
    pages = [file for file in (DOCS / "methods").glob("*.md") if file.stem != "index"]
    linked = f"jaxequi/methods/{method}.py"
    assert [f for f in pages if linked in f.read_text() or f"`{method}.py`](" in f.read_text()]


def test_every_variant_of_a_method_is_in_the_readme():
    text = (ROOT / "README.md").read_text()
    for family in ("sie", "moco", "byol", "simsiam", "mae", "ipirm", "eqinv"):
        for variant in importlib.import_module(f"configs.{family}").VARIANTS:
            assert f"`{variant}`" in text or variant == "stage1", f"{family}:{variant}"


def test_every_module_is_in_the_reference():
    text = "\n".join(file.read_text() for file in (DOCS / "api").glob("*.md"))
    for file in sorted((ROOT / "jaxequi").rglob("*.py")):
        parts = file.relative_to(ROOT).with_suffix("").parts
        inner = any(part.startswith("_") for part in parts)
        if not inner and len(parts) > 2 and parts[1] != "bench":  # programs say what they do
            assert f"automodule:: {'.'.join(parts)}\n" in text, parts


WITH_EXAMPLES = [f for f in sorted((ROOT / "jaxequi").rglob("*.py")) if ">>> " in f.read_text()]


@pytest.mark.parametrize("file", WITH_EXAMPLES, ids=page_name)
def test_examples_in_docstrings(file):
    name = ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    failed, tried = doctest.testmod(importlib.import_module(name))
    assert tried
    assert not failed


def test_the_readme_says_how_the_library_is_used(capsys):
    [code] = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    exec(compile(code, "README.md", "exec"), {})
    verdict, error = capsys.readouterr().out.rstrip().rsplit("\n", 1)
    assert "c4 at 33x33: exact" in verdict
    assert float(error) < 1e-4


def test_the_page_of_the_library(mae_run, tmp_path, monkeypatch, capsys):
    blocks = re.findall(r"```python\n(.*?)```", (DOCS / "library.md").read_text(), re.DOTALL)
    monkeypatch.chdir(tmp_path)
    shutil.copytree(mae_run, tmp_path / "runs/NAME")
    scope: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, "library.md", "exec"), scope)
    told = capsys.readouterr().out.splitlines()
    assert told[0] == "(2, 9, 9, 32)"
    assert told[1] == "(8, 2, 16)"
    assert 0 <= float(told[2]) < 1e-3
    assert told[3:] == ["True", "(2, 1, 16) 3 mae"]


def test_what_the_package_names_is_there():
    listed = {*dir(jaxequi)}
    page = (DOCS / "library.md").read_text()
    for name in jaxequi.__all__:
        assert getattr(jaxequi, name) is not None
        assert name in listed
        assert f"`jaxequi.{name}`" in page or f"`{name}`" in page
        assert f"    {name}" in jaxequi.__doc__ or f", {name} " in jaxequi.__doc__
    assert {*names.choices("models")} <= {*dir(jaxequi.models)}
    with pytest.raises(AttributeError, match="has no attribute 'vitt'"):
        _ = jaxequi.models.vitt
    with pytest.raises(AttributeError, match="module 'jaxequi' has no attribute 'modles'"):
        _ = jaxequi.modles


def test_a_source_and_an_evaluation_of_ones_own(tmp_path):
    config = importlib.import_module(f"{EXAMPLES}.config").get_config()
    config.mesh.data = 1
    config.backbone = {"name": "tests.experiment.tiny", "features": 32}  # compiled in a moment
    assert loop.run(experiment.build(config), tmp_path) == loop.FINISHED
    assert 0.5 <= log.read_metrics(tmp_path)[-1]["val/nearest_mean/top1"] <= 1


def test_a_group_of_ones_own():
    hexagon = importlib.import_module(f"{EXAMPLES}.hexagon")
    network = hexagon.Hexagon()
    y, x = np.mgrid[-8:9, -8:9] / 8
    bump = np.exp(-8 * ((x - 0.2) ** 2 + 2 * (y + 0.1) ** 2)).astype(np.float32)
    images = jnp.asarray(bump)[None, ..., None]
    variables = jax.jit(network.init)(jax.random.key(0), images)

    def axes(images):  # the regular and quotient fields stay inside; lengths of vectors come out
        return jnp.linalg.norm(network.apply(variables, images), axis=-1, keepdims=True)

    found = check(axes, images, hexagon.GROUP, regular=False)
    assert found.relative[-1, found.exact].max() < 1e-4
    assert found.relative[-1].max() < 0.2  # turns by 60 degrees interpolate


def test_the_method_page_is_the_file_that_tests_run():
    assert "jaxequi/methods/README.md" in (DOCS / "extend/method.md").read_text()


def test_figures_are_small_and_shown():
    text = "\n".join(file.read_text() for file in PAGES)
    for figure in (DOCS / "figures").glob("*.png"):
        assert figure.stat().st_size < 150_000
        assert f"figures/{figure.name})" in text


def test_the_site_builds_without_a_warning(tmp_path):
    for name in ("sphinx", "myst_parser", "furo", "latex2mathml"):
        pytest.importorskip(name, reason=f"the site is built with {name}: pip install '.[docs]'")
    command = [sys.executable, "-m", "sphinx", "-W", "-q", "-b", "html", DOCS, tmp_path / "html"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "html/methods/sie.html").read_text()
    assert "<math" in page
    assert "0.73\u00a0±\u00a00.05" in page  # of docs/results
    assert "Pooled R2" in page  # of the config's docstring
