"""Which packages the sources need: none but TFDS's own needs the tfds extra."""

import ast
import importlib
import inspect
import sys

import pytest

from jaxequi import names


def imports(module):
    """Packages that a module imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(inspect.getsource(module))):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add((node.module or "").partition(".")[0])
    return found


@pytest.mark.parametrize("name", names.choices("data.sources"))
def test_every_source_opens_without_tensorflow_and_tfds(name, monkeypatch):
    for blocked in ("tensorflow", "tensorflow_datasets", "torch"):
        monkeypatch.setitem(sys.modules, blocked, None)
    module = f"jaxequi.data.sources.{name}"
    kept = importlib.import_module(module)
    monkeypatch.delitem(sys.modules, module)
    fresh = importlib.import_module(module)
    assert fresh is not kept  # it was imported anew, with the packages out of reach
    # and what a config may say of it is what it said before
    assert inspect.signature(fresh.make) == inspect.signature(kept.make)
    needed = {name for name in ("tensorflow_datasets",) if name in imports(fresh)}
    assert needed == ({"tensorflow_datasets"} if name == "tfds" else set())
    setattr(sys.modules["jaxequi.data.sources"], name, kept)
