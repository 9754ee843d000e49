"""From a config to a job of plain objects."""

from __future__ import annotations

import dataclasses
import functools
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import ml_collections

from jaxequi import arguments, names
from jaxequi.data import order
from jaxequi.errors import Refusal
from jaxequi.experiment import cache, evaluations, networks, sets, trained
from jaxequi.groups.planar import Group
from jaxequi.methods import linear
from jaxequi.nn.stored import Stored
from jaxequi.probes import exactness
from jaxequi.train import mesh as meshes
from jaxequi.train import optim, trackers
from jaxequi.train.job import Evaluation, Job, Pass
from jaxequi.train.state import Start
from jaxequi.types import Array, Batch, Method

# What a config has, and of what type. Sets and the arguments of what has a `name` are checked where
# they are made.
Names = Sequence[str]
FIELDS: dict[str, Any] = {
    **dict.fromkeys(("seed", "batch_size", "accumulate", "keep_checkpoints"), int),
    **dict.fromkeys(("log_every_steps", "eval_every_steps", "save_every_steps"), int),
    **dict.fromkeys(("dtype", "init_encoder", "fresh", "check", "best_mode", "protocol"), str),
    **dict.fromkeys(("total_steps", "total_epochs", "init_step"), int | None),
    **dict.fromkeys(("init_from", "best"), str | None),
    **dict.fromkeys(("method", "optimizer", "train", "backbone_changes"), Mapping),
    "remat": bool,
    "norm": {"groups": int, "momentum": float, "epsilon": float, "unbiased": bool},
    "cache": {"on": bool, "folder": str | None},
    "online": {
        "features": Names,
        "relation": str | None,
        "every_part": bool,
        "whole_parts": bool,
        "last_view": bool,
    },
    "soft_equivariance": {
        "weight": float,
        "layer": str,
        "pairs": int,
        "objective": str,
        "temperature": float,
    },
    "evals": Mapping[str, Mapping],
    "mesh": {"data": int, "fsdp": int},
    "sharding": Sequence[tuple[str, str]],
    "loader": {"threads": int, "buffer": int, "on_error": str},
    "show": Names,
    "published": Mapping[str, float],
    "trackers": Names,
    "profile_steps": Sequence[int],
    "backbone": Mapping | None,
}
# Fields on which no result depends: they may change between two starts of one run.
FREE_FIELDS = (
    "mesh",
    "sharding",
    "loader.threads",
    "loader.buffer",
    "profile_steps",
    "show",
    "published",
    "trackers",
    "check",
    "cache.folder",
)


def build(
    config: ml_collections.ConfigDict,
    overridden: Iterable[str] = (),
    start: trained.Trained | None = None,
    devices: meshes.Devices | None = None,
) -> Job:
    """Make the job that a config describes.

    Args:
      config: as made by a file of configs/.
      overridden: fields set on the command line. A duration among them replaces the file's,
        whatever its unit.
      start: the network that it starts with, in place of what `init_from` has in store.
      devices: of a machine that is only planned, or their number, in place of those here.

    Raises:
      ValueError: something that is not there, does not fit or contradicts; nothing was compiled,
        and nothing written.
    """
    config, overridden = config.copy_and_resolve_references(), set(overridden)
    _check(config)
    given = config.to_dict()
    networks.follow_names(config, overridden)
    changed = overridden | _differing(given, config.to_dict())
    network = _start_network(config, start)
    mesh = meshes.make_mesh(**config.mesh, devices=devices)
    batch_size = config.batch_size
    meshes.check_batch_size(mesh, batch_size)

    frozen = network if config.cache.on else None
    backbone: nn.Module | None = None
    if frozen is not None:
        train = cache.cached(frozen, config, "train", mesh, all_views=False)
        backbone = Stored(frozen.backbone.features)
    else:
        train = sets.make_set(config, "train")
    examples, class_names = len(train.source), train.source.class_names
    _check_classes(config, len(class_names))
    steps_per_epoch = _steps_per_epoch(config, examples)
    steps = total_steps(config, steps_per_epoch, overridden)
    facts = {
        "num_classes": len(class_names),
        "examples": examples,
        "epochs": steps / steps_per_epoch,
        "equi": network.equi if network is not None else None,
        # Asked of few methods, and long to tell.
        "start_digest": functools.cache(functools.partial(_digest_of_start, network)),
        "data_digest": functools.cache(functools.partial(cache.digest_of_examples, train.source)),
    }
    method = networks.make_method(config, facts, backbone)
    passes = _passes(config, mesh, frozen, len(class_names))
    fixed = {
        "mesh": mesh,
        "relation": config.online.get("relation"),
        "tasks": linear.tasks(config.method.get("heads", {}), len(class_names)),
    }
    asked = bool(config.eval_every_steps) or not steps
    judged = evaluations.make(config, method, passes, fixed, frozen) if asked else []
    _check_best(config.best, passes, judged)
    return Job(
        method=method,
        optimizer=arguments.call(
            "optimizer",
            optim.make,
            networks.optimizer_options(config),
            batch_size=batch_size,
            total_steps=max(steps, 1),
        ),
        augment=networks.shown(config, train.augment),
        mesh=mesh,
        batches=functools.partial(
            train.batches, sets.make_order(config, examples), mesh, batch_size
        ),
        shapes=functools.cache(functools.partial(train.shapes, batch_size)),
        batch_size=batch_size,
        examples=examples,
        steps_per_epoch=steps_per_epoch,
        total_steps=steps,
        config=_saved(config, facts, steps, network),
        class_names=class_names,
        sets=passes,
        evaluations=judged,
        refit_pass=_refit_pass(config, method, mesh, passes),
        start=_start(config, network),
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
        profile_steps=_profile_steps(config.profile_steps, steps),
        free_fields=FREE_FIELDS,
        preflight=None if frozen is not None else _preflight(config),
        changed=sorted(changed),
        trackers=trackers.find(config.trackers),
    )


def _differing(old: Mapping[str, Any], new: Mapping[str, Any], at: str = "") -> set[str]:
    """Dotted names of the fields of `new` that `old` has not, or has otherwise."""
    names = set()
    for name, value in new.items():
        before = old.get(name)
        if isinstance(value, Mapping) and isinstance(before, Mapping):
            names |= _differing(before, value, f"{at}{name}.")
        elif name not in old or before != value:
            names.add(f"{at}{name}")
    return names


def _check(config: ml_collections.ConfigDict) -> None:
    """Refuse a config without the fields that all have, and values of another type or range."""
    arguments.check_plain("", config)
    _check_fields(config, FIELDS)
    for field in ("log_every_steps", "save_every_steps", "keep_checkpoints", "batch_size"):
        _at_least(config, field, 1)
    for field in ("eval_every_steps", "seed"):
        _at_least(config, field, 0)
    if config.seed >= 2**32:
        raise Refusal(f"seed={config.seed}: it must be below 2**32")
    try:
        re.compile(config.fresh)
    except re.error as error:
        raise Refusal(f"fresh={config.fresh!r} is no regular expression: {error}") from error
    if config.best_mode not in ("max", "min"):
        raise Refusal(f"best_mode={config.best_mode!r}: use 'max' or 'min'")


def _check_fields(given: Mapping[str, Any], kinds: Mapping[str, Any], below: str = "") -> None:
    missing = [f"{below}{field}" for field in kinds if field not in given]
    if missing:
        raise Refusal(
            f"the config lacks {', '.join(missing)}; begin it with configs.common.base(), which "
            "has every field, and set method, backbone, optimizer, train and val"
        )
    for field, kind in kinds.items():
        if isinstance(kind, dict):
            arguments.check(f"{below}{field}", given[field], Mapping)
            for name in given[field]:
                if name not in kind:
                    raise names.unknown(f"config field {field}.", name, kind)
            _check_fields(given[field], kind, f"{field}.")
        else:
            arguments.check(f"{below}{field}", given[field], kind)


def _check_best(best: str | None, passes: Mapping[str, Pass], judged: list[Evaluation]) -> None:
    """Refuse the score of an evaluation that does not take place."""
    if best is None or best.partition("/")[0] not in passes:
        return  # a metric of the training step
    starts = sorted({f"{evaluation.sets[-1]}/{evaluation.name}/" for evaluation in judged})
    if not any(best.startswith(start) for start in starts):
        raise Refusal(
            f"best={best!r} is a score of no evaluation; there is {', '.join(starts) or 'none'} "
            "(see evals and eval_every_steps)"
        )


def _at_least(config: ml_collections.ConfigDict, field: str, least: int) -> None:
    if config[field] < least:
        raise Refusal(f"{field}={config[field]}: it must be at least {least}")


def _start_network(
    config: ml_collections.ConfigDict, network: trained.Trained | None = None
) -> trained.Trained | None:
    """Load the checkpoint that a run starts with; what the config leaves open is as there."""
    if network is None and config.init_from:
        network = trained.load(config.init_from, config.init_step, config.init_encoder)
    if network is None and config.cache.on:
        raise Refusal(
            "cache.on=True: features are those of a trained network; give "
            "--config.init_from=FOLDER_OF_A_RUN"
        )
    origin = f"the checkpoint {config.init_from}" if network else "a config without init_from"
    there = network.config if network is not None else None
    if config.backbone is None:
        if network is None:
            raise Refusal(
                "say which network to start with: --config.init_from=FOLDER_OF_A_RUN (or describe "
                "a backbone)"
            )
        with config.unlocked():
            changes = config.backbone_changes.to_dict()
            config.backbone = {**network.config.backbone.to_dict(), **changes}
            # How many parts of a batch have statistics of their own is up to the run.
            config.norm = {**network.config.norm.to_dict(), "groups": config.norm.groups}
    elif config.backbone_changes:
        raise Refusal(
            f"backbone_changes={config.backbone_changes.to_dict()}: they are laid over the "
            "backbone of a checkpoint, and this config describes its own; change `backbone` itself"
        )
    if config.cache.on and config.backbone_changes:
        raise Refusal(
            f"backbone_changes={config.backbone_changes.to_dict()} and cache.on=True: stored "
            "features are those of the checkpoint's own network; take one of the two"
        )
    with config.unlocked():
        config.backbone_changes = {}  # they are in `backbone` now
    sets.resolved(config, there, origin)
    return network


def _digest_of_start(network: trained.Trained | None) -> str | None:
    if network is None or isinstance(jax.tree.leaves(network.params)[0], jax.ShapeDtypeStruct):
        return None
    return cache.digest_of_values((network.params, network.extra))


def _start(config: ml_collections.ConfigDict, network: trained.Trained | None) -> Start | None:
    if network is None or config.cache.on:
        return None
    encoder = f", its {config.init_encoder} network" if config.init_encoder else ""
    return Start(
        network.network,
        config.fresh,
        f"the checkpoint of step {network.step} of {network.run}{encoder}",
    )


def _check_classes(config: ml_collections.ConfigDict, found: int) -> None:
    wanted = config.method.get("num_classes")
    if wanted not in (None, found):
        raise Refusal(
            f"method.num_classes={wanted}, but the training data has {found} classes; set "
            f"--config.method.num_classes={found}"
        )


def _passes(
    config: ml_collections.ConfigDict, mesh: Any, frozen: trained.Trained | None, classes: int
) -> dict[str, Pass]:
    """Each set as evaluations see it: `train` as `val` shows its own."""
    passes = {}
    for name in sets.described(config):
        if frozen is not None:
            shown, one = None, cache.cached(frozen, config, name, mesh, all_views=True)
        else:
            shown = "val" if name == "train" and "val" in config else None
            one = sets.make_set(config, name, shown, capped=True)
        found = len(one.source.class_names)
        if found != classes:
            raise Refusal(
                f"the set {name} has {found} classes, and the training set has {classes}: a label "
                "is the number of a class among those of its set; give sets of the same classes"
            )
        passes[name] = one.once(mesh, shown or name)
    return passes


def _refit_pass(
    config: ml_collections.ConfigDict, method: Method, mesh: Any, passes: Mapping[str, Pass]
) -> Pass | None:
    work = method.refit
    if work is None:
        return None
    shown = "val" if "val" in config and not work.augmented else None
    one = sets.make_set(config, "train", shown)
    if work.batch_size is not None:
        one = dataclasses.replace(one, batch_size=work.batch_size)
    a_pass = one.once(mesh, "train" if work.batch_size is None else "the refit's train")
    if work.change is None:
        return a_pass
    change, augment = work.change, a_pass.augment

    def changed(key: Array, batch: Batch) -> Batch:
        first, second = jax.random.split(key)
        return change(second, augment(first, batch))

    return dataclasses.replace(a_pass, augment=changed)


def _saved(
    config: ml_collections.ConfigDict,
    facts: Mapping[str, Any],
    steps: int,
    network: trained.Trained | None,
) -> dict[str, Any]:
    """The config with everything that it left open."""
    saved = config.to_dict()
    saved["method"] = networks.filled(config.method.to_dict(), facts)
    saved["total_steps"], saved["total_epochs"] = steps, None
    if network is not None:
        saved["init_step"] = network.step
    return json.loads(json.dumps(saved))


def _preflight(config: ml_collections.ConfigDict) -> Callable[[Batch], str] | None:
    """Of a network over a group: at which layer these images break it (`probes.exactness`).

    `config.check` is "say" (the default), or "error" to refuse a network that is not exact.
    """
    backbone, check = networks.make_backbone(config), config.check
    if check not in ("say", "error"):
        raise names.unknown("check", check, ("say", "error"))
    group = getattr(backbone, "group", None)
    if not isinstance(group, Group) or group.order == 1:
        return None

    def judge(shapes: Batch) -> str:
        verdict = exactness.judge_network(backbone, (1, *shapes["views"].shape[2:]), group)
        if check == "error" and not verdict.exact:
            raise Refusal(f'check="error" refuses a network that is not exact:\n{verdict}')
        return f"equivariance, predicted:\n{verdict}"

    return judge


def _steps_per_epoch(config: ml_collections.ConfigDict, examples: int) -> int:
    """Whole batches in a pass; an endless stream, or a run of no step, needs not fill one."""
    learns = 0 not in (config.total_steps, config.total_epochs)
    if learns and config.train.get("order", "epochs") == "epochs":
        return order.steps_per_epoch(config.batch_size, examples)
    return max(1, examples // config.batch_size)


def total_steps(
    config: ml_collections.ConfigDict, steps_per_epoch: int, overridden: set[str]
) -> int:
    """The length of a run, which the config gives in steps or in epochs.

    No steps are a run of evaluations alone.
    """
    given = {f for f in ("total_steps", "total_epochs") if config[f] is not None}
    if len(given) == 2 and len(given & overridden) == 1:
        given &= overridden
    if len(given) != 1:
        raise Refusal(
            f"total_steps={config.total_steps} and total_epochs={config.total_epochs}: set exactly "
            "one of the two; the other one is None."
        )
    [field] = given
    if config[field] == 0 and config.init_from and config.evals:
        return 0
    if config[field] < 1:
        raise Refusal(
            f"{field}={config[field]}: it must be at least 1 (0 is for the evaluations of a "
            "checkpoint, with init_from and evals)"
        )
    return config.total_steps if field == "total_steps" else config.total_epochs * steps_per_epoch


def _profile_steps(given: tuple[int, ...], steps: int) -> tuple[int, int] | None:
    if not given:
        return None
    if len(given) != 2 or not 1 <= given[0] <= given[1] <= steps:
        raise Refusal(
            f"profile_steps={given}: give (first, last), with 1 <= first <= last <= {steps}, the "
            "steps of the run"
        )
    return given[0], given[1]
