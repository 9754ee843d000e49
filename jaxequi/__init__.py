"""Equivariant and self-supervised vision models in JAX.

What is imported as a library, each when it is first named:

    groups       C_N, D_N, their representations: numpy tables
    nn           layers of Linen: group and steerable convolutions, norms, heads, transformers
    models       backbones, `models.vit.make("tiny")`: f32[B, H, W, 3] -> f32[B, R]
    objectives   losses and metrics, functions of arrays
    methods      `methods.simclr.make(backbone=...)`: a `types.Method` of pure functions
    probes       `certify`, `check`, `symmetrize` of any function of images
    load         the trained network of a run's folder
    save_pretrained, load_pretrained   a network in the layout of the Hugging Face hub

>>> import jax, jaxequi
>>> backbone = jaxequi.models.vit.make("tiny", patch=8)
>>> images = jax.ShapeDtypeStruct((2, 32, 32, 3), "float32")
>>> shapes = jax.eval_shape(lambda x: backbone.init(jax.random.key(0), x, False), images)
>>> sum(leaf.size for leaf in jax.tree.leaves(shapes))
5376000
>>> jaxequi.objectives.vicreg.invariance(images := jax.numpy.ones((2, 4)), 3 * images).item()
4.0
"""

import importlib
import typing

_ROOMS = ("groups", "methods", "models", "nn", "objectives", "probes")
_FUNCTIONS = {
    "load": "jaxequi.experiment.trained",
    "load_pretrained": "jaxequi.interop.pretrained",
    "save_pretrained": "jaxequi.interop.pretrained",
}

if typing.TYPE_CHECKING:
    from jaxequi import groups, methods, models, nn, objectives, probes
    from jaxequi.experiment.trained import load
    from jaxequi.interop.pretrained import load_pretrained, save_pretrained
else:

    def __getattr__(name: str) -> typing.Any:
        """Import what is named, so that `python -m jaxequi` and each `--help` answer at once."""
        if name in _ROOMS:
            return importlib.import_module(f"jaxequi.{name}")
        if name in _FUNCTIONS:
            return getattr(importlib.import_module(_FUNCTIONS[name]), name)
        raise AttributeError(f"module 'jaxequi' has no attribute {name!r}", name=name)

    def __dir__() -> list[str]:
        return sorted(__all__)


__all__ = [
    "groups",
    "load",
    "load_pretrained",
    "methods",
    "models",
    "nn",
    "objectives",
    "probes",
    "save_pretrained",
]
