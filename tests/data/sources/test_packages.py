"""Which packages the sources need: none but TFDS's own needs the tfds extra."""

import importlib
import sys

import pytest

from jaxequi import names


@pytest.mark.parametrize("name", names.choices("data.sources"))
def test_every_source_opens_without_tensorflow_and_tfds(name, monkeypatch):
    for blocked in ("tensorflow", "tensorflow_datasets", "torch"):
        monkeypatch.setitem(sys.modules, blocked, None)
    module = f"jaxequi.data.sources.{name}"
    kept = importlib.import_module(module)
    monkeypatch.delitem(sys.modules, module)
    fresh = importlib.import_module(module)
    assert callable(fresh.make)
    setattr(sys.modules["jaxequi.data.sources"], name, kept)
