"""The evaluations of a config: `config.evals = {name: {options}}`.

An evaluation is a file of `evals/`: `SETS` names the sets that it reads, `reads(**options)` the
features, and `evaluate(sets, **options)` measures them. Options that every evaluation has:

    name      the file, where one file is asked for twice under two names
    sets      the sets to read in place of its `SETS`, in that order; an evaluation of one set may
              name several, and then judges each
    optional  leave it out where the method has no predictor and it needs one
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import ml_collections

from jaxequi import arguments, names
from jaxequi.errors import Refusal
from jaxequi.experiment.trained import Trained
from jaxequi.train.job import Evaluation, Pass
from jaxequi.types import Features, Method, Predictor, PyTree

# What `evaluate` is given by its parameter's name, if no option says it.
FACTS = ("mesh", "predictor", "relation", "tasks")


def make(
    config: ml_collections.ConfigDict,
    method: Method,
    passes: Mapping[str, Pass],
    facts: Mapping[str, Any],
    network: Trained | None,
) -> list[Evaluation]:
    """Make the evaluations of a config.

    Args:
      passes: by the names of the sets.
      facts: of `FACTS` those that do not change while the run goes on.
      network: whose predictor is asked, in place of the method's.

    Raises:
      ValueError: an evaluation, a set or an option that does not exist, or a predictor that does
        not.
    """
    made = []
    for name, given in config.evals.items():
        options = dict(given)
        file = options.pop("name", name)
        module: Any = names.module("evals", file, f"evaluation (evals.{name})")
        asked = options.pop("sets", None) or module.SETS
        arguments.check(f"evals.{name}.sets", asked, Sequence[str])
        asked = tuple(asked)
        wanted = inspect.signature(module.evaluate).parameters
        optional = options.pop("optional", False)
        arguments.check(f"evals.{name}.optional", optional, bool)
        kinds = arguments.kinds_of(module.evaluate)
        for option in options:
            if option not in wanted:
                own = [other for other in wanted if other not in ("sets", *FACTS)]
                raise names.unknown(
                    f"option of evals.{name}", option, [*own, "sets", "name", "optional"]
                )
            arguments.check(f"evals.{name}.{option}", options[option], kinds.get(option, Any))
        options = {k: tuple(v) if isinstance(v, list) else v for k, v in options.items()}
        predict: Callable[[PyTree, PyTree], Predictor] | None = None
        if "predictor" in wanted:
            predict = _predictor(method, network)
            if predict is None and optional:
                continue
            if predict is None:
                raise Refusal(
                    f"evals.{name}: {_called(config, network)} predicts no embedding of another "
                    "view; MRR and PRE need a method with such a predictor (sie, equimod, "
                    "only_equi). Leave that evaluation out"
                )
        groups = [(of,) for of in asked] if len(module.SETS) == 1 else [asked]
        if len(groups[0]) != len(module.SETS):
            raise Refusal(
                f"evals.{name}.sets={asked}: it reads {len(module.SETS)} sets, in place of "
                f"{', '.join(module.SETS)}"
            )
        fixed = {f: facts[f] for f in FACTS if f in wanted and f in facts and f not in options}
        for group in groups:
            for of in group:
                if of not in passes:
                    raise Refusal(
                        f"evals.{name} reads the set {of!r}; there is "
                        f"{', '.join(passes) or 'none'}. Describe that set in the config, or leave "
                        "the evaluation out"
                    )
            if hasattr(module, "check"):
                module.check([passes[of].examples for of in group], **options)
            made.append(
                Evaluation(
                    name=name,
                    sets=group,
                    features=module.reads(**{**fixed, **options}),
                    evaluate=functools.partial(
                        _evaluate,
                        module.evaluate,
                        module.SETS,
                        group,
                        predict,
                        {**fixed, **options},
                    ),
                )
            )
    return made


def _evaluate(
    function: Callable[..., dict[str, float]],
    roles: Sequence[str],
    group: Sequence[str],
    predict: Callable[[PyTree, PyTree], Predictor] | None,
    options: Mapping[str, Any],
    sets: Mapping[str, Features],
    params: PyTree,
    extra: PyTree,
) -> dict[str, float]:
    given = {role: sets[of] for role, of in zip(roles, group, strict=True)}
    more = {"predictor": predict(params, extra)} if predict else {}
    return function(given, **more, **options)


def _predictor(
    method: Method, network: Trained | None
) -> Callable[[PyTree, PyTree], Predictor] | None:
    if network is not None and network.method is not None:
        method, values = network.method, (network.params, network.extra)
        return None if method.predict is None else lambda *unused: _with(method, *values)
    return None if method.predict is None else functools.partial(_with, method)


def _with(method: Method, params: PyTree, extra: PyTree) -> Predictor:
    assert method.predict is not None and method.relation is not None  # noqa: PT018
    return Predictor(jax.tree_util.Partial(method.predict, params, extra), method.relation)


def _called(config: ml_collections.ConfigDict, network: Trained | None) -> str:
    if network is None:
        return f"method {config.method.name!r}"
    what = network.config.method.name if network.config.method else "a backbone alone"
    return f"{network.run} is {what}, which"
