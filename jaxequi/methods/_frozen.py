"""Heads on a network that learns no more: SIE's offline evaluations.

facebookresearch/SIE, `eval_classification.py`, `eval_angle_prediction.py` and
`eval_color_prediction.py`. Each head answers one task from one part of the representation. Heads
share nothing but the features: trained together, each goes the way that it would go alone.

In the reference the frozen network stays in training mode: features are normalised with the
statistics of their batch, and the running statistics drift with every view. `make` does the same
where it gets a backbone; without one it reads features that somebody computed before.

Logged, <head> = rotation-equivariant-deep, ...:

    cross_entropy/<head>, top1/<head>, top5/<head>      of a task with classes
    mse/<head>, r2/<head>, r2_<column>/<head>           of a task with numbers
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxequi.groups import quaternions
from jaxequi.methods._relation import LATENTS
from jaxequi.names import unknown
from jaxequi.nn import heads
from jaxequi.objectives import classification, regression
from jaxequi.types import Array, Batch, Features, Method, Metrics, Output, Progress, PyTree

PARTS = ("all", "invariant", "equivariant")
KINDS = ("linear", "deep")
_HIDDEN = (1024, 1024)  # of a deep head
_HUES = [LATENTS.index(name) for name in ("floor_hue", "light_hue")]


class Task(NamedTuple):
    """A question about an example.

    Attributes:
      target: batch -> classes i32[B], or numbers f32[B, K]; numpy or JAX, as the batch is.
      outputs: how many classes, or K.
      columns: names of the K numbers, which are read off two views; empty for classes, which are
        read off each view.
    """

    target: Callable[[Batch], Array]
    outputs: int
    columns: Sequence[str] = ()


def task(name: str, num_classes: int) -> Task:
    """Find a task of SIE's evaluations.

      "classification"  the class of the object
      "rotation"        the relative pose of two views, as a quaternion x, y, z, w
      "euler"           the same, as extrinsic angles x, y, z in radians
      "color"           differences of floor hue and light hue, not wrapped around

    Raises:
      ValueError: unknown name.
    """

    def pose(form: str) -> Callable[[Batch], Array]:
        return lambda b: quaternions.relative_pose(b["latent"][:, 0], b["latent"][:, 1], form)

    def color(batch: Batch) -> Array:
        if batch["latent"].shape[-1] != len(LATENTS):
            raise ValueError(
                f"hues are columns of the {len(LATENTS)} latents {', '.join(LATENTS)}; these have "
                f"{batch['latent'].shape[-1]}"
            )
        return batch["latent"][:, 1, _HUES] - batch["latent"][:, 0, _HUES]

    tasks = {
        "classification": Task(lambda b: b["label"], num_classes),
        "rotation": Task(pose("quaternion"), 4, ("x", "y", "z", "w")),
        "euler": Task(pose("euler"), 3, ("x", "y", "z")),
        "color": Task(color, 2, ("floor_hue", "light_hue")),
    }
    if name not in tasks:
        raise unknown("task", name, tasks)
    return tasks[name]


class Head(NamedTuple):
    """One head: a task, what it reads of the representation's R dimensions, and its depth."""

    task: str
    part: str
    kind: str
    first: int
    stop: int

    @property
    def name(self) -> str:
        """ "rotation-equivariant-deep"."""
        return f"{self.task}-{self.part}-{self.kind}"


def head(task: str, part: str, kind: str, features: int, equi: int) -> Head:
    """Make a head for a representation of which the last `equi` dimensions are equivariant.

    Raises:
      ValueError: unknown part or kind, or a part without dimensions.
    """
    if kind not in KINDS:
        raise unknown("kind of head", kind, KINDS)
    if part not in PARTS:
        raise unknown("part", part, PARTS)
    if part != "all" and not 0 < equi < features:
        raise ValueError(
            f"the part {part!r} of a representation of {features} dimensions, {equi} of them "
            "equivariant: this network has no such part; evaluate 'all', or say how many with equi"
        )
    first, stop = {
        "all": (0, features),
        "invariant": (0, features - equi),
        "equivariant": (features - equi, features),
    }[part]
    return Head(task, part, kind, first, stop)


class Heads(nn.Module):
    """Representations f32[B, V, R] to the output of each head, by its name.

    Classes are told of each view, f32[B, V, C], in training of the first one only, f32[B, 1, C];
    numbers of two views, f32[B, K].
    """

    heads: Sequence[Head]
    tasks: dict[str, Task]

    @nn.compact
    def __call__(self, representation: Array, train: bool) -> dict[str, Array]:
        outputs = {}
        for head in self.heads:
            task = self.tasks[head.task]
            x = representation[..., head.first : head.stop]
            if task.columns:
                if x.shape[1] != 2:
                    raise ValueError(f"{head.task} needs two views of an example, not {x.shape[1]}")
                x = x.reshape(len(x), -1)
            elif train:
                x = x[:, :1]
            widths = (*(_HIDDEN if head.kind == "deep" else ()), task.outputs)
            outputs[head.name] = heads.MLP(widths, name=head.name)(x)
        return outputs


def _score(name: str, task: Task, output: Array, target: Array) -> tuple[Array, Metrics]:
    if not task.columns:
        logits = output.reshape(-1, task.outputs)
        labels = jnp.repeat(target, output.shape[1])
        loss = classification.cross_entropy(logits, labels)
        scores = {f"top{k}/{name}": classification.top_k(logits, labels, k) for k in (1, 5)}
        return loss, {f"cross_entropy/{name}": loss, **scores}
    loss = regression.mean_squared_error(output, target)
    by_column = regression.r2_per_column(output, target)
    return loss, {
        f"mse/{name}": loss,
        f"r2/{name}": regression.r2(output, target),
        **{f"r2_{column}/{name}": by_column[i] for i, column in enumerate(task.columns)},
    }


def make(
    asked: Sequence[Head], tasks: dict[str, Task], backbone: nn.Module | None = None
) -> Method:
    """Make the method that trains heads.

    Args:
      asked: the heads.
      tasks: by the names that the heads use.
      backbone: (images f32[B, H, W, 3], train) -> f32[B, R], in training mode while the heads
        train; its variables are `extra["backbone"]` and start as drawn, to be replaced by those
        of a checkpoint. Without one a batch's `views` f32[B, V, R] are representations.
    """
    network = Heads(tuple(asked), tasks)

    def init(key: Array, batch: Batch) -> tuple[PyTree, PyTree]:
        head_key, backbone_key = jax.random.split(key)
        views, extra = batch["views"], {}
        if backbone is not None:
            extra["backbone"] = dict(backbone.init(backbone_key, views[:, 0], False))
            views = jnp.zeros((*views.shape[:2], backbone.features))
        variables = network.init(head_key, views, True)
        return variables.get("params", {}), extra

    def loss(
        params: PyTree, extra: PyTree, batch: Batch, key: Array, progress: Progress
    ) -> tuple[Array, Output]:
        del key, progress
        representation = batch["views"]
        if backbone is not None:
            frozen, seen = dict(extra["backbone"]), []
            moving = [name for name in frozen if name != "params"]
            for view in range(representation.shape[1]):
                images = batch["views"][:, view]
                features, after = backbone.apply(frozen, images, True, mutable=moving)
                frozen |= after
                seen.append(features)
            representation, extra = jnp.stack(seen, axis=1), {"backbone": frozen}
        outputs: Any = network.apply({"params": params}, representation, True)
        total, metrics = jnp.zeros(()), dict[str, Array]()
        for head in asked:
            target = tasks[head.task].target(batch)
            one, scores = _score(head.name, tasks[head.task], outputs[head.name], target)
            total, metrics = total + one, metrics | scores
        return total, Output(extra, metrics, {})

    def encode(params: PyTree, extra: PyTree, views: Array) -> Features:
        if backbone is not None:
            images = views.reshape(-1, *views.shape[2:])
            features: Any = backbone.apply(extra["backbone"], images, False)
            views = features.reshape(*views.shape[:2], -1)
        return {"heads": network.apply({"params": params}, views, False)}

    return Method(init=init, loss=loss, encode=encode, mean_over_examples=backbone is None)
