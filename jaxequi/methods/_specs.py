"""Objectives and predictors, made of what a config says of them: a name and its arguments."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn

from jaxequi import arguments
from jaxequi.errors import Refusal
from jaxequi.names import unknown
from jaxequi.nn import heads
from jaxequi.objectives import contrastive, vicreg
from jaxequi.types import Array, Metrics

Objective = Callable[[Array, Array, Array], tuple[Array, Metrics]]
"""(prediction, x, y), each f32[N, E] -> a scalar, and its terms without their weights.

The prediction should equal y; without a relation to model it is x itself. x and y are the
embeddings of the two views, for terms that keep an embedding from collapsing.
"""


def _ntxent(temperature: float = 0.1) -> Objective:
    if temperature <= 0:
        raise Refusal(f"temperature={temperature}: it divides the similarities; use 0.1 or so")

    def objective(prediction: Array, x: Array, y: Array) -> tuple[Array, Metrics]:
        del x  # the negatives keep it from collapsing
        loss = contrastive.ntxent(prediction, y, temperature)
        return loss, {"similarity": loss}

    return objective


def _vicreg(
    similarity_weight: float = 10.0,
    variance_weight: float = 10.0,
    covariance_weight: float = 1.0,
    vary_prediction: bool = False,
    batch_size: int | None = None,
) -> Objective:
    """VICReg's sum; `vary_prediction` asks variance of the prediction too, with the same weight."""

    def objective(prediction: Array, x: Array, y: Array) -> tuple[Array, Metrics]:
        loss, terms = vicreg.regularization(x, y, variance_weight, covariance_weight, batch_size)
        terms["similarity"] = vicreg.invariance(prediction, y)
        loss += similarity_weight * terms["similarity"]
        if vary_prediction:
            terms["prediction_variance"] = vicreg.variance(prediction)
            loss += variance_weight * terms["prediction_variance"]
        return loss, terms

    return objective


_OBJECTIVES: Mapping[str, Callable[..., Objective]] = {"ntxent": _ntxent, "vicreg": _vicreg}


def objective(spec: Mapping[str, Any]) -> Objective:
    """Make an objective of `dict(name="ntxent", temperature=0.1)` or `dict(name="vicreg", ...)`.

    Raises:
      ValueError: unknown name or argument.
    """
    return _call("objective", spec, _OBJECTIVES)


def _hypernetwork(
    hidden: str = "",
    deep: bool = False,
    bias: bool = False,
    predicted_bias: bool = False,
    relu: bool = False,
    *,
    dtype: Any,
) -> nn.Module:
    """See `heads.Hypernetwork`; `hidden` is written like a projector, "" is a single matrix."""
    return heads.Hypernetwork(heads.widths(hidden), deep, bias, predicted_bias, relu, dtype)


def _mlp(layers: int = 1, *, dtype: Any) -> nn.Module:
    """See `heads.MLPPredictor`."""
    if layers < 1:
        raise Refusal(f"an mlp predictor with layers={layers}; it has at least 1")
    return heads.MLPPredictor(layers, dtype)


def _wigner(irreps: str, *, dtype: Any) -> nn.Module:
    """See `heads.WignerPredictor`; beyond the paper."""
    return heads.WignerPredictor(irreps, dtype)


_PREDICTORS: Mapping[str, Callable[..., nn.Module]] = {
    "hypernetwork": _hypernetwork,
    "mlp": _mlp,
    "wigner": _wigner,
}
HYPERNETWORK: Mapping[str, Any] = {"name": "hypernetwork"}  # linear, one matrix: the published one


def predictor(spec: Mapping[str, Any], dtype: Any) -> nn.Module:
    """Make a predictor of `dict(name="hypernetwork", ...)` or `dict(name="mlp", layers=1)`.

    Raises:
      ValueError: unknown name or argument.
    """
    return _call("predictor", {**spec, "dtype": dtype}, _PREDICTORS)


def _call(kind: str, spec: Mapping[str, Any], makers: Mapping[str, Callable[..., Any]]) -> Any:
    given = dict(spec)
    name = given.pop("name", "")
    if name not in makers:
        raise unknown(kind, name, makers)
    allowed = inspect.signature(makers[name]).parameters
    for argument in given:
        if argument not in allowed:
            raise unknown(f"argument of {kind} {name!r}", argument, allowed)
    return arguments.call(f"{kind} {name!r}", makers[name], given)
