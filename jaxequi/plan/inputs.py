"""Jobs to plan: a config's own, on devices and data that need not be here."""

from __future__ import annotations

import dataclasses
import pathlib
import re
from collections.abc import Iterable, Mapping
from typing import Any

import ml_collections
import numpy as np

from jaxequi import experiment
from jaxequi.data.errors import DataError
from jaxequi.data.sources.threedie import LATENTS
from jaxequi.errors import Refusal
from jaxequi.experiment import before, sets
from jaxequi.train import mesh as meshes
from jaxequi.train.job import Job

# Sets as their authors describe them, by what their folders are called (`_` stands for `-`, `_` or
# nothing): examples of the training and of the held-out part, classes, pixels a side.
_PUBLISHED = {
    "imagenet(_?2012|_?1k)?": (1_281_167, 50_000, 1000, 256),
    "(3diebench|threedie)": (41_920, 10_552, 55, 256),  # 50 views each
    "cifar_?100": (50_000, 10_000, 100, 32),
    "cifar_?10": (50_000, 10_000, 10, 32),
    "(fashion_?)?mnist": (60_000, 10_000, 10, 28),
    "stl_?10": (5_000, 8_000, 10, 96),
}
_SHOTS = r"(?<![a-z0-9])imagenet[-_](10|20|50)(?![0-9k])"  # EqInv's folders, of 1000 classes
_VIEWS = {"num_views": 50, "latents": LATENTS}  # of 3DIEBench


@dataclasses.dataclass(frozen=True)
class Data:
    """What the command line says about the training set; None where it does not."""

    examples: int | None = None
    classes: int | None = None
    image_size: int | None = None


def prepared(
    config: ml_collections.ConfigDict, data: Data
) -> tuple[ml_collections.ConfigDict, list[str]]:
    """Copy a config for a plan: without evaluations, and with blank images for absent data.

    Returns:
      The config, and what was assumed, a line each.

    Raises:
      ValueError: a set is not here, and nothing is known of it.
    """
    config = config.copy_and_resolve_references()
    said: list[str] = []
    with config.unlocked():
        config.evals, config.eval_every_steps, config.best = {}, 0, None
        for name, part in sets.described(config).items():
            if part.source is None:
                continue
            sets.move_root(name, part)
            given = part.source
            plain = given.to_dict() if hasattr(given, "to_dict") else given
            found = _available(plain, data, name == "train", said)
            if found is not plain:
                part.source = found
        for name, one in (config.get("before") or {}).items():
            config.before[name], more = prepared(one, data)
            said += more
    return config, list(dict.fromkeys(said))


def _available(source: Any, data: Data, train: bool, said: list[str]) -> Any:
    """The source, or blank images in its place; of one that wraps another, that other."""
    asked, facts = train and data != Data(), None
    if isinstance(source, Mapping) and isinstance(source.get("source"), Mapping):
        inner = _available(source["source"], data, train, said)
        return source if inner is source["source"] else {**source, "source": inner}
    try:
        opened = sets.make_source(source)
        if not asked:
            return source
        train_examples = held_out = len(opened)
        classes, size = len(opened.class_names), 256
        [record] = opened.read([0], np.zeros((1, 1), np.int64))
        more = {"num_views": opened.num_views, "latents": len(record.get("latent", [[]])[0])}
    except DataError as error:
        facts = _published(source)
        if facts is None and None in dataclasses.astuple(data):
            raise Refusal(
                f"{error} To plan without it say what it is like: --examples=N --classes=N "
                "--image_size=PIXELS"
            ) from error
        train_examples, held_out, classes, size = facts or (1, 1, 1, 256)
        more = _VIEWS if facts == _PUBLISHED["(3diebench|threedie)"] else {}
    classes = data.classes or classes  # a label has the same classes in all sets
    examples = (data.examples or train_examples) if train else held_out
    size = (data.image_size if asked or facts is None else None) or size
    blank = {"name": "blank", "examples": max(examples, classes), "classes": classes, "size": size}
    blank |= more
    said.append(
        f"{source}: planned as {blank['examples']} images of {size}x{size} in {classes} classes"
    )
    return blank


def _published(source: Any) -> tuple[int, int, int, int] | None:
    """What is known of a set by its name; a subset of so many shots by its folder."""
    text = str(source).lower()
    shots = re.search(_SHOTS, text)
    if shots is not None:
        _, held_out, classes, size = next(iter(_PUBLISHED.values()))
        return int(shots.group(1)) * classes, held_out, classes, size
    for name, facts in _PUBLISHED.items():
        pattern = name.replace("_", "[-_]")
        if re.search(rf"(?<![a-z0-9])(?<!tiny[-_]){pattern}(?![-_]?[0-9])", text):
            return facts
    return None


def job(
    config: ml_collections.ConfigDict,
    overridden: Iterable[str] = (),
    devices: meshes.Devices | None = None,
) -> Job:
    """Build a prepared config's job on devices; of a pipeline, that of its last run.

    Raises:
      ValueError: see `experiment.build`.
    """
    runs = before.plan(config, overridden, pathlib.Path("a-run-that-is-only-planned"))
    if len(runs) == 1:
        return experiment.build(config, overridden, devices=devices)
    last = before.rehearse(runs, devices)
    assert last is not None  # there is no such folder
    return last


def changed(
    config: ml_collections.ConfigDict, fields: Mapping[str, Any]
) -> ml_collections.ConfigDict:
    """The same config with other values of some fields, dotted; all sets in one batch size."""
    config = config.copy_and_resolve_references()
    with config.unlocked():
        for field, value in fields.items():
            place = config
            *path, last = field.split(".")
            for part in path:
                place = place[part]
            place[last] = value
        if "batch_size" in fields:
            for name, part in sets.described(config).items():
                if name != "train" and part.get("batch_size") is not None:
                    part.batch_size = fields["batch_size"]
    return config


def alternatives(config: ml_collections.ConfigDict, devices: int) -> dict[str, dict[str, Any]]:
    """What else the run could be: by name the fields that differ."""
    remat, narrow = bool(config.remat), config.dtype == "bfloat16"
    split = config.mesh.fsdp > 1
    found: dict[str, dict[str, Any]] = {
        f"remat={not remat}": {"remat": not remat},
        f"dtype={'float32' if narrow else 'bfloat16'}": {
            "dtype": "float32" if narrow else "bfloat16"
        },
    }
    if devices > 1:
        fsdp = 1 if split else devices
        found[f"fsdp={fsdp}"] = {"mesh.data": -1, "mesh.fsdp": fsdp}
    return found
