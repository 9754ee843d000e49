"""From a config to a job of plain objects. This is the only reader of the config."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import ml_collections

from jaxequi import augment, names
from jaxequi.data import loader, order, transforms
from jaxequi.evals import features
from jaxequi.groups.planar import Group
from jaxequi.methods import with_probe
from jaxequi.probes import exactness
from jaxequi.train import mesh as meshes
from jaxequi.train import optim
from jaxequi.train.loop import Evaluation, Job
from jaxequi.types import Batch, Method, Source

# Fields on which no result depends: they may change between two starts of one run.
LOADER_FIELDS = ("loader.threads", "loader.buffer")
FREE_FIELDS = ("mesh", "sharding", *LOADER_FIELDS, "profile_steps", "show", "check")
DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


def build(config: ml_collections.ConfigDict, overridden: Iterable[str] = ()) -> Job:
    """Make the job that a config describes.

    Args:
      config: as made by a file of configs/.
      overridden: fields set on the command line. A duration among them replaces the file's,
        whatever its unit.

    Raises:
      ValueError: something that is not there, does not fit or contradicts; nothing was compiled.
    """
    config = config.copy_and_resolve_references()
    overridden = set(overridden)
    mesh = meshes.make_mesh(**config.mesh)
    batch_size = config.batch_size
    meshes.check_batch_size(mesh, batch_size)

    train = make_source(config.train)
    wanted = config.method.get("num_classes")
    if wanted not in (None, len(train.class_names)):
        raise ValueError(
            f"method.num_classes={wanted}, but the training data has {len(train.class_names)} "
            f"classes; set --config.method.num_classes={len(train.class_names)}"
        )
    steps_per_epoch = order.steps_per_epoch(batch_size, len(train))
    steps = total_steps(config, steps_per_epoch, overridden)
    evaluations = {}
    if config.eval_every_steps:
        evaluations["val"] = _evaluation(config, mesh, make_source(config.val))
    _check_positive(config, "log_every_steps", "save_every_steps")

    saved = config.to_dict()
    saved["total_steps"], saved["total_epochs"] = steps, None
    return Job(
        method=make_method(config, len(train.class_names)),
        optimizer=optim.make(**config.optimizer, batch_size=batch_size, total_steps=steps),
        augment=augment.make(config.augment),
        mesh=mesh,
        batches=functools.partial(
            make_batches,
            source=train,
            part=config.train,
            rows=functools.partial(order.epochs, config.seed, batch_size=batch_size, n=len(train)),
            positions=meshes.local_rows(mesh, batch_size),
            seed=config.seed,
            options=config.loader,
        ),
        batch_size=batch_size,
        examples=len(train),
        steps_per_epoch=steps_per_epoch,
        total_steps=steps,
        config=saved,
        class_names=train.class_names,
        evaluations=evaluations,
        sharding_rules=config.sharding,
        seed=config.seed,
        accumulate=config.accumulate,
        log_every=config.log_every_steps,
        eval_every=config.eval_every_steps,
        save_every=config.save_every_steps,
        keep_checkpoints=config.keep_checkpoints,
        best=config.best,
        best_mode=config.best_mode,
        show=config.show,
        profile_steps=_profile_steps(config.profile_steps),
        free_fields=FREE_FIELDS,
        preflight=_preflight(config),
        eval_augment=augment.make(config.eval_augment) if config.get("eval_augment") else None,
    )


def _preflight(config: ml_collections.ConfigDict) -> Callable[[Batch], str] | None:
    """Of a network over a group: at which layer these images break it (`probes.exactness`).

    `config.check` is "say" (the default), or "error" to refuse a network that is not exact.
    """
    backbone, check = make_backbone(config), config.get("check", "say")
    if check not in ("say", "error"):
        raise names.unknown("check", check, ("say", "error"))
    group = getattr(backbone, "group", None)
    if not isinstance(group, Group) or group.order == 1:
        return None

    def judge(batch: Batch) -> str:
        verdict = exactness.judge_network(backbone, (1, *batch["views"].shape[2:]), group)
        if check == "error" and not verdict.exact:
            raise ValueError(f'check="error" refuses a network that is not exact:\n{verdict}')
        return f"equivariance, predicted:\n{verdict}"

    return judge


def _dtype(config: ml_collections.ConfigDict) -> Any:
    if config.dtype not in DTYPES:
        raise names.unknown("dtype", config.dtype, DTYPES)
    return DTYPES[config.dtype]


def make_backbone(config: ml_collections.ConfigDict) -> nn.Module:
    """Make the config's backbone: (images f32[B, H, W, 3], train) -> f32[B, R]."""
    return _made("models", config.backbone, remat=config.remat, dtype=_dtype(config))


def make_method(config: ml_collections.ConfigDict, num_classes: int) -> Method:
    """Make the config's method over its backbone, with the online evaluator if it asks for it."""
    common = {"dtype": _dtype(config)}
    method = _made("methods", config.method, backbone=make_backbone(config), **common)
    if not config.probe:
        return method
    every_part = config.get("probe_every_part", False)
    return with_probe(method, num_classes=num_classes, every_part=every_part, **common)


def _made(folder: str, field: Mapping[str, Any], **more: Any) -> Any:
    """Call `make` of the file that a field names, with the rest of the field as arguments."""
    arguments = dict(field)
    make = names.find(folder, arguments.pop("name"))
    try:
        return make(**arguments, **more)
    except TypeError as error:
        raise ValueError(f"{folder} {field['name']!r}: {error}") from error


def make_source(part: Mapping[str, Any]) -> Source:
    """Make the source of `config.train` or `config.val`."""
    return _made("data.sources", part["source"])


def make_batches(start: int, stop: int, *, source, part, rows, positions, seed, options):
    """Open the batches of steps start .. stop - 1; `part` is `config.train` or `config.val`."""
    return loader.batches(
        source,
        transforms.make(part["views"]),
        rows,
        seed=seed,
        start=start,
        stop=stop,
        num_views=part["num_views"],
        positions=positions,
        **options,
    )


def _evaluation(config: ml_collections.ConfigDict, mesh, source: Source) -> Evaluation:
    """A pass over the validation set, the same pairs every time."""
    size = config.val.batch_size
    meshes.check_batch_size(mesh, size, "val.batch_size")
    [(name, arguments)] = config.evals.items()
    evaluate = names.find("evals", name, "evaluate")
    return Evaluation(
        batches=functools.partial(
            make_batches,
            0,
            order.once_steps(size, len(source)),
            source=source,
            part=config.val,
            rows=functools.partial(order.once, batch_size=size, n=len(source)),
            positions=meshes.local_rows(mesh, size),
            seed=config.seed,
            options=config.loader,
        ),
        batch_size=size,
        features=features.gather,
        evaluate=functools.partial(evaluate, **arguments),
    )


def total_steps(
    config: ml_collections.ConfigDict, steps_per_epoch: int, overridden: set[str]
) -> int:
    """The length of a run, which the config gives in steps or in epochs."""
    given = {f for f in ("total_steps", "total_epochs") if config[f] is not None}
    if len(given) == 2 and len(given & overridden) == 1:
        given &= overridden
    if len(given) != 1:
        raise ValueError(
            f"total_steps={config.total_steps} and total_epochs={config.total_epochs}: set exactly "
            "one of the two; the other one is None."
        )
    _check_positive(config, *given)
    return config.total_steps if "total_steps" in given else config.total_epochs * steps_per_epoch


def _check_positive(config: ml_collections.ConfigDict, *fields: str) -> None:
    for field in fields:
        if config[field] < 1:
            raise ValueError(f"{field}={config[field]}: it must be at least 1")


def _profile_steps(given: tuple[int, ...]) -> tuple[int, int] | None:
    if not given:
        return None
    if len(given) != 2 or not 1 <= given[0] <= given[1]:
        raise ValueError(f"profile_steps={given}: give (first, last), with 1 <= first <= last")
    return given[0], given[1]
