"""A trained checkpoint as plain objects: what runs start with, what exports and reports read."""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Any

import flax.linen as nn
import jax
import ml_collections

from jaxequi.errors import Refusal
from jaxequi.experiment import networks
from jaxequi.train import checkpoint
from jaxequi.train.workdir import CHECKPOINTS
from jaxequi.types import OWN, Features, Method, PyTree, collections

ENCODERS = ("", "target")


@dataclasses.dataclass(frozen=True)
class Trained:
    """A network and its values, without the heads that were trained beside it.

    Attributes:
      run: the folder of the run.
      step: of the checkpoint.
      config: of the run.
      backbone: (images f32[B, H, W, 3], train) -> f32[B, R].
      method: None for a checkpoint that holds a backbone alone, or heads on a frozen one.
      params, extra: the method's values, or {"backbone": ...}; numpy arrays. Their shapes alone, of
        a run that is still to begin.
    """

    run: pathlib.Path
    step: int
    config: ml_collections.ConfigDict
    backbone: nn.Module
    method: Method | None
    params: PyTree
    extra: PyTree

    @property
    def network(self) -> PyTree:
        """The collections of the whole network: {"params": {"backbone": ...}, ...}."""
        return {"params": self.params, **collections(self.extra)}

    @property
    def backbone_variables(self) -> PyTree:
        """The collections of the backbone: {"params": ..., "batch_stats": ...}."""
        return {n: tree["backbone"] for n, tree in self.network.items() if "backbone" in tree}

    @property
    def equi(self) -> int:
        """How many of the last dimensions of the representation are its equivariant part."""
        parts = self.method.parts if self.method is not None else {}
        return parts.get("representation", (0, 0))[1]

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
            raise Refusal(f"{self.run} has no predictor of embeddings")
        return self.method.predict(params, extra, embedding, z)

    def encode(self, params: PyTree, extra: PyTree, views: jax.Array) -> Features:
        """Encode views f32[B, V, H, W, 3] in evaluation mode, given the values as arguments.

        Returns:
          "representation" f32[B, V, R] and, from a whole method, what else its `encode` returns.
        """
        if self.method is not None:
            return dict(self.method.encode(params, extra, views))
        images = views.reshape(-1, *views.shape[2:])
        stats = {
            n: tree["backbone"] for n, tree in collections(extra).items() if "backbone" in tree
        }
        alone: Any = self.backbone.apply({"params": params["backbone"], **stats}, images, False)
        return {"representation": alone.reshape(*views.shape[:2], -1)}


def load(run: str | pathlib.Path, step: int | None = None, encoder: str = "") -> Trained:
    """Load a checkpoint of a run's folder.

    Args:
      step: which one; the newest by default.
      encoder: "" for the network that was trained, "target" for its moving average.

    Raises:
      ValueError: no such checkpoint or encoder, a damaged checkpoint, or one of another network
        than its config's.
    """
    run = pathlib.Path(run)
    step, saved, params, extra = checkpoint.read_network(run.absolute() / CHECKPOINTS, step)
    return describe(run, step, ml_collections.ConfigDict(saved), params, extra, encoder)


def describe(
    run: pathlib.Path,
    step: int,
    config: ml_collections.ConfigDict,
    params: PyTree,
    extra: PyTree,
    encoder: str = "",
) -> Trained:
    """Describe the network of a run by the values of its state, or by their shapes.

    Raises:
      ValueError: no such encoder, or a state without a backbone.
    """
    if encoder not in ENCODERS:
        raise Refusal(f"encoder {encoder!r}: '' is the trained network, 'target' its average")
    if encoder:
        held = extra.get(OWN, {})
        if encoder not in held:
            raise Refusal(
                f"{run} has no {encoder} network ({config.method.name if config.method else '-'} "
                "keeps none); take init_encoder=''"
            )
        extra = dict(held[encoder])
        params = extra.pop("params")
    params = {name: tree for name, tree in params.items() if name != "online"}
    frozen = extra.get(OWN, {}).get("backbone")
    heads = bool(frozen) and "backbone" not in params  # on a network that learned no more
    if heads:
        extra = {name: dict(tree) for name, tree in collections(extra).items()}
        for name, tree in frozen.items():
            (params if name == "params" else extra.setdefault(name, {}))["backbone"] = tree
    if "backbone" not in params:
        raise Refusal(
            f"{run} holds {', '.join(params) or 'no parameters'}, but no backbone; start with the "
            "run whose network it evaluates"
        )
    backbone = networks.make_backbone(config)
    method = None
    if config.method is not None and not encoder and not heads:
        method = networks.make_method(config, {})
    return Trained(run, step, config, backbone, method, params, extra)
