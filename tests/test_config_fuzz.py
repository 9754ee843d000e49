"""Configs with hostile values: a job or a `Refusal`, soon, and nothing is written."""

from __future__ import annotations

import contextlib
import copy
import importlib
import os

import hypothesis
import ml_collections
import pytest
from hypothesis import strategies as st

from jaxequi import experiment
from jaxequi.errors import Refusal
from jaxequi.train.job import Job
from tests.limits import soon

EXAMPLES = int(os.environ.get("FUZZ", 25))  # of each config
SECONDS = 10.0  # for any one of them

NESTED = {"name": {"name": {"name": {"name": [[[[]]]]}}}}
HOSTILE = [
    *(-1, 0, 1, 3, 2**31, 2**63, 10**30, -(2**63)),
    *(float("nan"), float("inf"), -float("inf"), -0.0, 1e-300, 1e300, 0.5, -2.5),
    *("", " ", "\0", "ä🦒", "(", "[", "*", "None", "nan", "../../etc", "a.b", ".", "x" * 5000),
    *("((((", "a|b(", "decode(1)", "normalise()", "__import__('os')", "flip(p=float)"),
    *(None, True, False, (), (None,), (1,), (-1, -1), ((("",),),), ("",), ("*", "["), [], {}),
    *({"": ""}, {"name": "zzz"}, {"name": ""}, {"name": None}, {"name": 3}, NESTED),
    *(b"\xff", 1j, object, print),
]


def places(config, at=()):
    """The path of every field, inner ones too."""
    found = []
    for name, value in config.items():
        found.append((*at, name))
        if isinstance(value, dict):
            found += places(value, (*at, name))
    return found


def changed(config, changes):
    config = copy.deepcopy(config)
    for path, value in changes:
        part = config
        for name in path[:-1]:
            part = part.get(name) if isinstance(part, dict) else None
        if isinstance(part, dict):
            part[path[-1]] = copy.deepcopy(value)
    return config


def field(config, path):
    for name in path:
        config = config[name]
    return config


def hostile(config):
    """Paths and values; half of the values are of the type that stands there."""

    def value(path):
        alike = [v for v in HOSTILE if type(v) is type(field(config, path))]
        return st.tuples(
            st.just(path), st.sampled_from(alike or HOSTILE) | st.sampled_from(HOSTILE)
        )

    return st.sampled_from(places(config)).flatmap(value)


@pytest.fixture
def plain(request, sie_run, tmp_path, monkeypatch):
    """A smoke config as dicts, in an empty folder."""
    file, words = request.param
    config = importlib.import_module(f"configs.{file}").get_config(words)
    if file == "linear":
        config.init_from = str(sie_run)
    monkeypatch.chdir(tmp_path)
    return config.copy_and_resolve_references().to_dict()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "plain",
    [
        ("sie", "sie,smoke"),
        ("rotmnist", "exact,smoke"),
        ("classification", "digits,smoke"),
        ("linear", "linear,smoke"),
    ],
    indirect=True,
    ids=lambda given: given[0],
)
def test_a_hostile_value_is_refused_or_does(plain, tmp_path):
    @hypothesis.settings(
        max_examples=EXAMPLES,
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=list(hypothesis.HealthCheck),
        phases=[hypothesis.Phase.generate],
    )
    @hypothesis.given(st.lists(hostile(plain), min_size=1, max_size=3))
    def attempt(changes):
        hypothesis.note(changes)
        config = ml_collections.ConfigDict(changed(plain, changes))
        with soon(SECONDS), contextlib.suppress(Refusal):
            assert isinstance(experiment.build(config), Job)
        assert not list(tmp_path.iterdir())

    attempt()
