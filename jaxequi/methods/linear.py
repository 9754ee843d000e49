"""Heads on a network that learns no more: linear evaluation, and SIE's offline evaluations.

facebookresearch/SIE, `eval_classification.py`, `eval_angle_prediction.py` and
`eval_color_prediction.py`. Each head answers one task from one part of the representation. Heads
share nothing but the features: trained together, each goes the way that it would go alone.

The frozen backbone is state (`extra["own"]["backbone"]`): it has no gradient and no moments. It
stands in evaluation mode; with `drift` it stays in training mode, as SIE's evaluations have it:
features are normalised with the statistics of their batch, and the running statistics drift with
every view. Over `nn.stored.Stored` a batch's views are representations that were computed before.

Logged, <head> = rotation-equivariant-deep, ...:

    cross_entropy/<head>, top1/<head>, top5/<head>      of a task with classes
    mse/<head>, r2/<head>, r2_<column>/<head>           of a task with numbers
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxequi.errors import Refusal
from jaxequi.groups import quaternions
from jaxequi.groups.relation import LATENTS
from jaxequi.names import unknown
from jaxequi.nn import heads as layers
from jaxequi.nn import norm as norms
from jaxequi.objectives import classification, regression
from jaxequi.types import (
    OWN,
    Array,
    Batch,
    Features,
    Method,
    Metrics,
    Output,
    Progress,
    PyTree,
    collections,
)

PARTS = ("all", "invariant", "equivariant")
KINDS = ("linear", "deep")
PLACES = ("before", "behind")  # of a norm
_HIDDEN = (1024, 1024)  # of a deep head
_HUES = [LATENTS.index(name) for name in ("floor_hue", "light_hue")]


class Task(NamedTuple):
    """A question about an example.

    Attributes:
      target: batch -> classes i32[B], or numbers f32[B, K]; numpy or JAX, as the batch is.
      outputs: how many classes, or K.
      columns: names of the K numbers; empty for classes, which are read off each view.
      views: how many views together the numbers are read off.
    """

    target: Callable[[Batch], Array]
    outputs: int
    columns: Sequence[str] = ()
    views: int = 2


def task(name: str, num_classes: int) -> Task:
    """Find a task of SIE's evaluations.

      "classification"  the class of the object
      "rotation"        the relative pose of two views, as a quaternion x, y, z, w
      "euler"           the same, as extrinsic angles x, y, z in radians
      "orientation"     the pose of one view, as a quaternion x, y, z, w
      "color"           differences of floor hue and light hue, not wrapped around

    Raises:
      ValueError: unknown name; of a target, a batch without the latents that it is made of.
    """

    def latent_of(batch: Batch) -> Array:
        if batch.get("latent") is None:
            raise Refusal(
                f"the task {name!r} is told by the latents of the views, and this set has none; "
                "ask 'classification', or use a source with latents, such as 'scenes' or 'threedie'"
            )
        return batch["latent"]

    def pose(form: str) -> Callable[[Batch], Array]:
        def between(batch: Batch) -> Array:
            latent = latent_of(batch)
            return quaternions.relative_pose(latent[:, 0], latent[:, 1], form)

        return between

    def orientation(batch: Batch) -> Array:
        return quaternions.from_euler_xyz(latent_of(batch)[:, 0, :3])

    def color(batch: Batch) -> Array:
        latent = latent_of(batch)
        if latent.shape[-1] != len(LATENTS):
            raise Refusal(
                f"hues are columns of the {len(LATENTS)} latents {', '.join(LATENTS)}; these have "
                f"{latent.shape[-1]}"
            )
        return latent[:, 1, _HUES] - latent[:, 0, _HUES]

    tasks = {
        "classification": Task(lambda b: b["label"], num_classes),
        "rotation": Task(pose("quaternion"), 4, ("x", "y", "z", "w")),
        "euler": Task(pose("euler"), 3, ("x", "y", "z")),
        "orientation": Task(orientation, 4, ("x", "y", "z", "w"), views=1),
        "color": Task(color, 2, ("floor_hue", "light_hue")),
    }
    if name not in tasks:
        raise unknown("task", name, tasks)
    return tasks[name]


def tasks(asked: Iterable[str], num_classes: int) -> dict[str, Task]:
    """The tasks of these names, see `task`."""
    return {name: task(name, num_classes) for name in asked}


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
        raise Refusal(
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

    Classes are told of each view, f32[B, V, C], in training of the first one only, f32[B, 1, C].
    Numbers are told of one view, f32[B, V, K], or of two: of views 1 and 2, 3 and 4, ...,
    f32[B, V // 2, K].

    Attributes:
      before, behind: make a norm of what a head reads, and of what it says; None for none.
      std: of a head's last layer, see `nn.heads.Linear`.
    """

    heads: Sequence[Head]
    tasks: dict[str, Task]
    before: Any = None
    behind: Any = None
    std: float | None = None
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, representation: Array, train: bool) -> dict[str, Array]:
        outputs = {}
        for head in self.heads:
            task = self.tasks[head.task]
            x = representation[..., head.first : head.stop]
            if task.columns:
                together = x.shape[1] // task.views
                if not together:
                    raise Refusal(
                        f"{head.task} needs two views of an example, not {x.shape[1]}; set "
                        "--config.train.num_views=2"
                    )
                x = x[:, : task.views * together].reshape(len(x), together, -1)
            elif train:
                x = x[:, :1]
            x = self._normed(self.before, x, head, train)
            widths = (*(_HIDDEN if head.kind == "deep" else ()), task.outputs)
            x = layers.MLP(widths, self.dtype, self.std, name=head.name)(x)
            outputs[head.name] = self._normed(self.behind, x, head, train)
        return outputs

    def _normed(self, norm: Any, x: Array, head: Head, train: bool) -> Array:
        if norm is None:
            return x
        return norm(use_running_average=not train, name=f"{head.name}-norm")(x)


def _score(name: str, task: Task, output: Array, target: Array) -> tuple[Array, Metrics]:
    output = norms.at_least_f32(output)
    if not task.columns:
        logits = output.reshape(-1, task.outputs)
        labels = jnp.repeat(target, output.shape[1])
        loss = classification.cross_entropy(logits, labels)
        scores = {f"top{k}/{name}": classification.top_k(logits, labels, k) for k in (1, 5)}
        return loss, {f"cross_entropy/{name}": loss, **scores}
    output = output[:, 0]
    loss = regression.mean_squared_error(output, target)
    by_column = regression.r2_per_column(output, target)
    return loss, {
        f"mse/{name}": loss,
        f"r2/{name}": regression.r2(output, target),
        **{f"r2_{column}/{name}": by_column[i] for i, column in enumerate(task.columns)},
    }


def make(
    *,
    backbone: nn.Module,
    num_classes: int,
    heads: Mapping[str, Sequence[str]],
    parts: Sequence[str] = (),
    equi: int | None = None,
    batch_norm: str = "",
    norm_groups: int = 1,
    norm_epsilon: float = 1e-5,
    head_std: float | None = None,
    drift: bool = False,
    norm: Any = norms.BatchNorm,
    dtype: Any = jnp.float32,
) -> Method:
    """Make the method that trains heads on a frozen backbone.

    Args:
      backbone: (images f32[B, H, W, 3], train) -> f32[B, R]. Its variables start as drawn, to be
        replaced by those of a checkpoint.
      num_classes: C.
      heads: of each task (see `task`) the kinds of heads, "linear" or "deep"; no task is a frozen
        network alone, for evaluations that need no head.
      parts: which parts of the representation each head reads, of `PARTS`; () takes those that it
        has.
      equi: how many of its last dimensions are equivariant; None is none.
      batch_norm: "before", BatchNorm without scale and shift before each head (MAE's linear
        probe); "behind", BatchNorm with both behind it (revisitAIRL's `--cls-bn`); "" for none.
      norm_groups, norm_epsilon: of that norm, whatever those of the backbone's.
      head_std: of the heads' last weights, beside a bias of 0; None starts them as torch's Linear.
      drift: keep the backbone in training mode.
      norm: makes `batch_norm`.
      dtype: of the heads' computations.

    Raises:
      ValueError: unknown task, kind, part or place of a norm, or a part without dimensions.
    """
    known, width, equi = tasks(heads, num_classes), backbone.features, equi or 0
    if batch_norm not in ("", *PLACES):
        raise unknown("batch_norm", batch_norm, ("", *PLACES))
    if norm_groups < 1 or not norm_epsilon > 0 or not (head_std is None or 0 < head_std < math.inf):
        raise Refusal(
            f"norm_groups={norm_groups}, norm_epsilon={norm_epsilon}, head_std={head_std}: the "
            "first is at least 1, the others are above 0, and head_std may be None"
        )
    affine = batch_norm == "behind"
    placed = functools.partial(norm, affine=affine, groups=norm_groups, epsilon=norm_epsilon)
    parts = parts or (PARTS if 0 < equi < width else PARTS[:1])
    asked = [
        head(name, part, kind, width, equi)
        for name, kinds in heads.items()
        for kind in kinds
        for part in parts
    ]
    return of_heads(
        asked,
        known,
        backbone,
        drift,
        {batch_norm: placed} if batch_norm else {},
        head_std,
        dtype,
    )


def of_heads(
    asked: Sequence[Head],
    tasks: dict[str, Task],
    backbone: nn.Module,
    drift: bool = False,
    batch_norm: Mapping[str, Any] = MappingProxyType({}),
    head_std: float | None = None,
    dtype: Any = jnp.float32,
) -> Method:
    """Make the method of these very heads; see `make`.

    Args:
      tasks: by the names that the heads use.
      batch_norm: by its place, of `PLACES`, what makes the norm there.
    """
    network = Heads(tuple(asked), tasks, **batch_norm, std=head_std, dtype=dtype)

    def represent(
        frozen: PyTree, views: Array, train: bool, key: Array | None = None
    ) -> tuple[Array, PyTree]:
        """f32[B, V, ...] to f32[B, V, R], view by view, and the backbone's variables after it.

        In training mode `key` draws what a network drops.
        """
        seen, moving = [], [name for name in frozen if name != "params"] if train else []
        for view in range(views.shape[1]):
            rngs = None if key is None else {"dropout": jax.random.fold_in(key, view)}
            found: Any = backbone.apply(frozen, views[:, view], train, mutable=moving, rngs=rngs)
            features, after = found
            frozen = {**frozen, **after}
            seen.append(features)
        return jnp.stack(seen, axis=1), frozen

    def init(key: Array, batch: Batch) -> tuple[PyTree, PyTree]:
        head_key, backbone_key = jax.random.split(key)
        views = batch["views"]
        frozen = dict(backbone.init(backbone_key, views[:, 0], False))
        blank = jnp.zeros((*views.shape[:2], backbone.features))
        extra = dict(network.init(head_key, blank, True))
        return extra.pop("params", {}), {**extra, OWN: {"backbone": frozen}}

    def loss(
        params: PyTree, extra: PyTree, batch: Batch, key: Array, progress: Progress
    ) -> tuple[Array, Output]:
        del progress
        stopped = jax.lax.stop_gradient(extra[OWN]["backbone"])
        representation, frozen = represent(stopped, batch["views"], drift, key)
        variables = {"params": params, **collections(extra)}
        outputs: Any
        outputs, after = network.apply(
            variables, representation, True, mutable=list(collections(extra))
        )
        total, metrics = jnp.zeros(()), dict[str, Array]()
        for one in asked:
            target = tasks[one.task].target(batch)
            term, scores = _score(one.name, tasks[one.task], outputs[one.name], target)
            total, metrics = total + term, metrics | scores
        features = {"representation": representation}
        return total, Output({**after, OWN: {"backbone": frozen}}, metrics, features)

    def encode(params: PyTree, extra: PyTree, views: Array) -> Features:
        flat = views.reshape(-1, 1, *views.shape[2:])
        representation, _ = represent(extra[OWN]["backbone"], flat, False)
        representation = representation.reshape(*views.shape[:2], -1)
        variables = {"params": params, **collections(extra)}
        outputs = network.apply(variables, representation, False)
        return {"representation": representation, "heads": outputs}

    alone = not drift and not batch_norm
    return Method(init=init, loss=loss, encode=encode, mean_over_examples=alone)
