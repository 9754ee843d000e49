"""A trained checkpoint as plain objects: what evaluations, exports and reports start from."""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Any

import flax.linen as nn
import jax
import ml_collections

from jaxequi import experiment
from jaxequi.train import checkpoint
from jaxequi.types import Features, Method, PyTree

FOLDER = "checkpoints"  # below the folder of a run


@dataclasses.dataclass(frozen=True)
class Trained:
    """A network and its values, without the heads that were trained beside it.

    Attributes:
      run: the folder of the run.
      step: of the checkpoint.
      config: of the run.
      backbone: (images f32[B, H, W, 3], train) -> f32[B, R].
      method: None for a checkpoint that holds a backbone alone.
      params, extra: the method's values, or {"backbone": ...}; numpy arrays.
    """

    run: pathlib.Path
    step: int
    config: ml_collections.ConfigDict
    backbone: nn.Module
    method: Method | None
    params: PyTree
    extra: PyTree

    @property
    def backbone_variables(self) -> PyTree:
        """The collections of the backbone: {"params": ..., "batch_stats": ...}."""
        stats = {name: tree["backbone"] for name, tree in self.extra.items() if "backbone" in tree}
        return {"params": self.params["backbone"], **stats}

    @property
    def parts(self) -> tuple[int, int]:
        """Widths of the invariant and the equivariant part of the representation."""
        if self.method is None:
            return self.backbone.features, 0
        return self.method.parts.get("representation", (self.backbone.features, 0))

    @property
    def has_predictor(self) -> bool:
        """Whether the method predicts the embedding of a view from another's."""
        return self.method is not None and self.method.predict is not None

    def predict(
        self, params: PyTree, extra: PyTree, embedding: jax.Array, z: jax.Array
    ) -> jax.Array:
        """See `Method.predict`.

        Raises:
          ValueError: the method has no such predictor.
        """
        if self.method is None or self.method.predict is None:
            raise ValueError(f"{self.run} has no predictor of embeddings")
        return self.method.predict(params, extra, embedding, z)

    def encode(self, params: PyTree, extra: PyTree, views: jax.Array) -> Features:
        """Encode views f32[B, V, H, W, 3] in evaluation mode, given the values as arguments.

        Returns:
          "representation" f32[B, V, R] and, from a whole method, what else its `encode` returns;
          with a predictor "predictable" f32[B, V, E], the part of the embedding that it acts on.
        """
        if self.method is not None:
            features = dict(self.method.encode(params, extra, views))
            if self.has_predictor:
                equi = self.method.parts["embedding"][1]
                features["predictable"] = features["embedding"][..., -equi:]
            return features
        images = views.reshape(-1, *views.shape[2:])
        stats = {name: tree["backbone"] for name, tree in extra.items()}
        alone: Any = self.backbone.apply({"params": params["backbone"], **stats}, images, False)
        return {"representation": alone.reshape(*views.shape[:2], -1)}


def load(run: str | pathlib.Path, step: int | None = None) -> Trained:
    """Load a checkpoint of a run's folder; the newest, if no step is named.

    Raises:
      ValueError: no such checkpoint, a damaged one, or one of another network than its config's.
    """
    run = pathlib.Path(run)
    step, saved, params, extra = checkpoint.read_network(run.absolute() / FOLDER, step)
    config = ml_collections.ConfigDict(saved)
    params = {name: tree for name, tree in params.items() if name != "probe"}
    backbone = experiment.make_backbone(config)
    method = None
    if config.method is not None:
        with config.unlocked():
            config.probe = False
        method = experiment.make_method(config, 0)
    if "backbone" not in params:
        raise ValueError(f"{run} holds {', '.join(params)}, but no backbone")
    return Trained(run, step, config, backbone, method, params, extra)
