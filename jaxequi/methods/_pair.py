"""What methods that compare two views of each example have in common.

The views pass the network one after the other, never as one batch: each has batch statistics of
its own, and the running statistics are updated twice a step, by view 1 first.

Every such method logs the terms of its loss without their weights (`loss/...`), and what shows a
collapse of its features (`objectives.collapse`):

    correlation/<feature>-view1, -view2    mean correlation of two different dimensions
    spread/<feature>-view1, -view2         mean deviation of a dimension, rows scaled to length 1

for the `representation` and the `embedding`, and as `correlation/prediction`, `spread/prediction`
for the embedding of view 2 that a predictor makes of view 1's.
"""

from __future__ import annotations

import fractions
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp

from jaxequi.errors import Refusal
from jaxequi.nn import heads
from jaxequi.nn.norm import at_least_f32
from jaxequi.objectives import collapse
from jaxequi.types import (
    Array,
    Batch,
    Features,
    Method,
    Metrics,
    Output,
    Progress,
    PyTree,
    Relation,
)


class Encoded(NamedTuple):
    """One view in the network: its representation, and the parts of its embedding."""

    representation: Array  # f32[B, R]
    inv: Array  # f32[B, E_inv], asked to be equal in both views; E_inv may be 0
    equi: Array  # f32[B, E_equi], asked to change as the relation says; E_equi may be 0

    @property
    def embedding(self) -> Array:
        """f32[B, E], the invariant part first."""
        return jnp.concatenate([self.inv, self.equi], axis=-1)


class Pair(NamedTuple):
    """Both views of a batch, their relation, and what a predictor makes of them."""

    x: Encoded
    y: Encoded
    z: Any  # f32[B, L]; None for methods that ask for no relation
    prediction: Any  # f32[B, ...]; None for networks without a predictor


class Network(nn.Module):
    """Views f32[B, 2, ...] and the relation z f32[B, L], if it is asked for, to a `Pair`.

    A network of this kind defines `parts` and `encode`, and `relate` if it has a predictor.
    """

    if TYPE_CHECKING:

        @property
        def parts(self) -> dict[str, tuple[int, int]]:
            """See `Method.parts`."""

        def encode(self, images: Array, train: bool) -> Encoded:
            """Encode images f32[B, ...] of one view."""

    def __call__(self, views: Array, z: Any, train: bool) -> Pair:
        x, y = self.encode(views[:, 0], train), self.encode(views[:, 1], train)
        return Pair(x, y, z, self.relate(x, y, z))

    def relate(self, x: Encoded, y: Encoded, z: Any) -> Any:
        """Apply the predictor, if there is one."""
        return None


class Plain(Network):
    """One projector; the representation is all invariant, the embedding but its last `free`."""

    backbone: nn.Module
    projector: heads.Projector
    free: int

    @property
    def parts(self) -> dict[str, tuple[int, int]]:
        width = self.projector.widths[-1]
        return {
            "representation": (self.backbone.features, 0),
            "embedding": (width - self.free, self.free),
        }

    def encode(self, images: Array, train: bool) -> Encoded:
        representation = self.backbone(images, train)
        embedding = at_least_f32(self.projector(representation, train))
        return Encoded(representation, embedding, embedding[:, :0])


class Parts(Network):
    """Projectors for the invariant and the equivariant part, and a predictor for the latter.

    The first `inv` dimensions of the representation go to the one and the last `equi` to the
    other. Both may read all of it, and then no dimension counts as invariant; with `inv` = 0
    there is no invariant part.
    """

    backbone: nn.Module
    projector_inv: heads.Projector | None
    projector_equi: heads.Projector
    predictor: nn.Module
    inv: int
    equi: int

    @property
    def parts(self) -> dict[str, tuple[int, int]]:
        inv = 0 if self.projector_inv is None else self.projector_inv.widths[-1]
        return {
            "representation": (self.backbone.features - self.equi, self.equi),
            "embedding": (inv, self.projector_equi.widths[-1]),
        }

    def encode(self, images: Array, train: bool) -> Encoded:
        representation = self.backbone(images, train)
        inv = representation[:, :0]
        if self.projector_inv is not None:
            inv = at_least_f32(self.projector_inv(representation[:, : self.inv], train))
        equi = at_least_f32(self.projector_equi(representation[:, -self.equi :], train))
        return Encoded(representation, inv, equi)

    def relate(self, x: Encoded, y: Encoded, z: Any) -> Array:
        return self.predict(x.equi, z)

    def predict(self, equi: Array, z: Array) -> Array:
        """Predict the equivariant part of view 2's embedding from view 1's: f32[B, E_equi]."""
        return at_least_f32(self.predictor(equi, z))


def projector(
    text: str, norm: heads.Norm, dtype: Any, part: int = 1, whole: int = 1
) -> heads.Projector:
    """Make a projector of widths such as "2048-2048-2048", or of a part's share of them.

    A share is rounded half to even, so that parts need not add up to the whole (the quirk of
    facebookresearch/SIE's split classes).

    Raises:
      ValueError: malformed widths, none, or a share that rounds to 0.
    """
    share = fractions.Fraction(part, whole)
    sizes = [round(width * share) for width in heads.widths(text)]
    if not sizes or min(sizes) < 1:
        raise Refusal(
            f"projector {text!r} leaves a part of {part} in {whole} dimensions the widths {sizes}; "
            "give at least one layer, and wide enough ones"
        )
    return heads.Projector(sizes, norm, dtype)


def make(
    network: Network,
    objective: Callable[[Pair], tuple[Array, Metrics]],
    relation: Relation | None = None,
) -> Method:
    """Make the method that minimises an objective of a network's `Pair`.

    Args:
      objective: the loss of a pair, and its terms to be logged as `loss/<term>`.
      relation: what z is; None where the network needs none.
    """
    predicts = isinstance(network, Parts)

    def inputs(batch: Batch) -> tuple[Array, Any]:
        views = batch["views"]
        if views.ndim < 3 or views.shape[1] != 2:
            raise Refusal(
                f"this method compares two views of each example, batch['views'] [B, 2, ...], not "
                f"{views.shape}; give the data set two pipes of `views`"
            )
        return views, relation.between(batch) if relation else None

    def init(key: Array, batch: Batch) -> tuple[PyTree, PyTree]:
        extra = dict(network.init(key, *inputs(batch), train=True))
        return extra.pop("params"), extra

    def loss(
        params: PyTree, extra: PyTree, batch: Batch, key: Array, progress: Progress
    ) -> tuple[Array, Output]:
        del progress
        views, z = inputs(batch)
        variables = {"params": params, **extra}
        pair, extra = network.apply(
            variables, views, z, train=True, mutable=list(extra), rngs={"dropout": key}
        )
        x, y = pair.x, pair.y
        scalar, terms = objective(pair)
        shown = {
            f"{feature}-view{view}": getattr(encoded, feature)
            for feature in ("representation", "embedding")
            for view, encoded in enumerate((x, y), start=1)
        }
        if predicts:
            shown["prediction"] = pair.prediction
        metrics = {f"loss/{name}": term for name, term in terms.items()}
        metrics |= {f"correlation/{name}": collapse.correlation(v) for name, v in shown.items()}
        metrics |= {f"spread/{name}": collapse.spread(v) for name, v in shown.items()}
        features = {
            "representation": jnp.stack([x.representation, y.representation], axis=1),
            "embedding": jnp.stack([x.embedding, y.embedding], axis=1),
        }
        return scalar, Output(dict(extra), metrics, features)

    def encode(params: PyTree, extra: PyTree, views: Array) -> Features:
        images = views.reshape(-1, *views.shape[2:])
        variables = {"params": params, **extra}
        encoded: Any = network.apply(variables, images, train=False, method="encode")
        features = {"representation": encoded.representation, "embedding": encoded.embedding}
        if predicts:
            features["predictable"] = encoded.equi
        return {name: v.reshape(*views.shape[:2], -1) for name, v in features.items()}

    def predict(params: PyTree, extra: PyTree, embedding: Array, z: Array) -> Array:
        prediction: Any = network.apply({"params": params, **extra}, embedding, z, method="predict")
        return prediction

    return Method(
        init=init,
        loss=loss,
        encode=encode,
        predict=predict if predicts else None,
        relation=relation if predicts else None,
        parts=network.parts,
    )
