"""Networks as the programs of this room see them: shapes from a config, values in a run's folder.

All that the room needs of `experiment` and `train.checkpoint` is here.
"""

from __future__ import annotations

import pathlib

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from jaxequi import experiment
from jaxequi.errors import Refusal
from jaxequi.experiment import sets, trained
from jaxequi.interop import files
from jaxequi.train import checkpoint
from jaxequi.train import mesh as meshes
from jaxequi.train.workdir import CHECKPOINTS
from jaxequi.types import OWN, PyTree

follow_names = experiment.follow_names


def shapes(config: ml_collections.ConfigDict, num_classes: int, side: int = 64) -> PyTree:
    """Shapes of the config's method, {"params": ..., **extra}; they depend on no data.

    Args:
      config: of the method; `train` says of how many views it learns.
      num_classes: of the data; read by configs that do not say it.
      side: of the images in pixels; of no matter but to tables of learned positions.
    """
    method = experiment.make_method(config, {"num_classes": num_classes, "examples": 1})
    views = max(config.train.num_views, len(config.train.views or ()))
    rows = 2 * config.norm.groups * config.method.get("norm_groups", 1)  # parts of any batch
    batch = {
        "views": jax.ShapeDtypeStruct((rows, views, side, side, 3), jnp.float32),
        "latent": jax.ShapeDtypeStruct((rows, views, 7), jnp.float32),
        "label": jax.ShapeDtypeStruct((rows,), jnp.int32),
    }
    params, extra = jax.eval_shape(method.init, jax.random.key(0), batch)
    return {"params": params, **extra}


def module(config: ml_collections.ConfigDict) -> nn.Module:
    """Make the config's backbone, for tables that depend on it."""
    return experiment.make_backbone(config)


def images(config: ml_collections.ConfigDict, source: str, count: int) -> np.ndarray:
    """Images of a source as the config's training shows them: f32[count, H, W, 3].

    Args:
      config: of a training; its `train` says how images are cropped and normalised.
      source: such as "folder(root='DIR')".
      count: of images; a small source is cropped as often as it takes.

    Raises:
      ValueError: no such source, or a config without views.
    """
    config = ml_collections.ConfigDict({**config, "train": {**config.train, "source": source}})
    sets.resolved(config, None, "the config")
    shown = experiment.make_set(config, "train")
    rows = np.random.default_rng(0).permutation(max(count, len(shown.source)))[:count]
    with shown.batches(
        lambda step: rows % len(shown.source), meshes.make_mesh(1, 1), count, 0, 1
    ) as opened:
        batch = next(opened)
    return np.asarray(shown.augment(jax.random.key(0), batch)["views"][:, 0])


def backbone(variables: PyTree) -> PyTree:
    """The variables (or shapes) of a whole network's backbone: {"params": ..., "batch_stats"}."""
    return {name: tree["backbone"] for name, tree in variables.items() if "backbone" in tree}


def under_backbone(variables: PyTree) -> PyTree:
    """The inverse of `backbone`, for a network that is a backbone alone."""
    return {name: {"backbone": tree} for name, tree in variables.items()}


def load(
    run: str | pathlib.Path, step: int | None = None, backbone_alone: bool = False
) -> tuple[int, ml_collections.ConfigDict, PyTree]:
    """Read a checkpoint of a run, the newest if no step is named.

    Returns:
      Its step, its config, and {"params": ..., **extra}; numpy arrays. With `backbone_alone` the
      config has no method, and the variables are those of the backbone; of heads on a frozen
      network, of that.

    Raises:
      ValueError: no such checkpoint, a damaged one, or one that holds no backbone.
    """
    folder = pathlib.Path(run).absolute() / CHECKPOINTS
    step, saved, params, extra = checkpoint.read_network(folder, step)
    config = ml_collections.ConfigDict(saved)
    variables = {"params": params, **extra}
    if config.method is not None and config.method.name == "linear":
        variables[OWN] = {"backbone": _frozen(config, extra)}
        alone = variables[OWN]["backbone"]
    elif "backbone" not in config or "backbone" not in params:
        raise Refusal(f"{run} holds {', '.join(params)}, but no backbone")
    else:
        alone = backbone(variables)
    if backbone_alone:
        config.method = None
        variables = under_backbone(alone)
    return step, config, variables


def _frozen(config: ml_collections.ConfigDict, extra: PyTree) -> PyTree:
    """The network under the heads of a run; with stored features it is in the run before only."""
    held = extra.get(OWN, {}).get("backbone")
    if held:
        return held
    return trained.load(config.init_from, config.init_step, config.init_encoder).backbone_variables


def save(
    workdir: str | pathlib.Path, config: ml_collections.ConfigDict, variables: PyTree, step: int
) -> None:
    """Write the folder of a run that holds a network and no optimizer; all or nothing.

    Raises:
      ValueError: the folder has checkpoints already, or cannot be written.
    """
    folder = pathlib.Path(workdir).absolute() / CHECKPOINTS
    if folder.is_dir() and any(folder.iterdir()):
        raise Refusal(f"{folder} has checkpoints already; give another --workdir")
    extra = dict(variables)
    if config.method is not None and config.method.get("num_classes", 0) is None:
        # A fact of the data, which a training writes down; here the classifier knows it.
        config.method.num_classes = extra["params"]["classifier"]["kernel"].shape[-1]
    state = {"params": extra.pop("params"), "extra": extra}
    with files.appearing(folder) as part:
        checkpoints = checkpoint.Checkpoints(part, keep=1)
        checkpoints.save(step, state, config.to_dict(), window=[])
        checkpoints.close()
