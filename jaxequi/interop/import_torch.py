"""Read weights of torch into a checkpoint of ours.

python -m jaxequi.interop.import_torch --file=model.pth --config=configs/sie.py:sie,paper
python -m jaxequi.interop.import_torch --file=resnet50.pth --torchvision=resnet50

  --file FILE        `model.pth` or `final_weights.pth` of facebookresearch/SIE, or a state dict of
                     a torchvision ResNet; a file that would run code is refused
  --config CONFIG    the method and the backbone that the file is of
  --workdir DIR      where the checkpoint goes (default: FILE without its ending)

Every key must find its place, else the difference is shown (- what the network needs, + what the
file has) and nothing is written. Needs torch: pip install -e ".[torch]".
"""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from absl import app, flags, logging

from jaxequi import cli, experiment, trained
from jaxequi.errors import Refusal
from jaxequi.interop import files, mapping
from jaxequi.interop.tables import resnet, sie, torchvision
from jaxequi.train.checkpoint import Checkpoints
from jaxequi.types import PyTree

_CLASSES = "evaluator.classifier_repr.weight"  # its rows are the classes; SIE's every method has it


def state_of(loaded: Mapping[str, Any]) -> tuple[dict[str, np.ndarray], int]:
    """Find the state dict in a file: whole or under "model", with or without "module.".

    Returns:
      The state dict without that prefix, and the epoch that the file names (0 if none).

    Raises:
      ValueError: something else than arrays under names.
    """
    state = loaded.get("model", loaded.get("state_dict", loaded))
    odd = [key for key, value in state.items() if not isinstance(value, np.ndarray | np.generic)]
    if odd or not state:
        raise Refusal(f"the file has no state dict; it has {', '.join(map(str, loaded))}")
    return {key.removeprefix("module."): value for key, value in state.items()}, int(
        loaded.get("epoch", 0)
    )


def shapes(config: ml_collections.ConfigDict, num_classes: int) -> PyTree:
    """Shapes of the config's method: {"params": ..., **extra}; they depend on no data."""
    method = experiment.make_method(config, num_classes)
    views = 1 if config.method.name == "supervised" else 2
    batch = {
        "views": jax.ShapeDtypeStruct((2, views, 64, 64, 3), jnp.float32),
        "latent": jax.ShapeDtypeStruct((2, views, 7), jnp.float32),
        "label": jax.ShapeDtypeStruct((2,), jnp.int32),
    }
    params, extra = jax.eval_shape(method.init, jax.random.key(0), batch)
    return {"params": params, **extra}


def sie_variables(
    state: Mapping[str, np.ndarray], config: ml_collections.ConfigDict
) -> tuple[PyTree, bool]:
    """Carry a state dict of facebookresearch/SIE over.

    Returns:
      {"params": ..., **extra}, and whether it is a whole method or a backbone alone.

    Raises:
      ValueError: it does not fit the config's method; lists every key that has no place.
    """
    whole = any(key.startswith("backbone.") for key in state)
    template = shapes(config, len(state[_CLASSES]) if _CLASSES in state else 1)
    if whole:
        return mapping.from_torch(state, template, sie.TABLE), True
    alone = {name: tree["backbone"] for name, tree in template.items()}
    found = mapping.from_torch(state, alone, resnet.TABLE)
    return {name: {"backbone": tree} for name, tree in found.items()}, False


def torchvision_config(architecture: str, num_classes: int) -> ml_collections.ConfigDict:
    """The config of a classifier that torchvision trained."""
    return ml_collections.ConfigDict(
        {
            "backbone": {"name": "torchvision_resnet", "architecture": architecture},
            "method": {"name": "supervised", "num_classes": num_classes},
            "probe": False,
            "dtype": "float32",
            "remat": False,
            "augment": ("normalise('imagenet')",),
        }
    )


def torchvision_variables(
    state: Mapping[str, np.ndarray], architecture: str
) -> tuple[PyTree, ml_collections.ConfigDict]:
    """Carry a state dict of a torchvision ResNet over: {"params": ..., **extra}, and its config.

    Raises:
      ValueError: unknown architecture, or it does not fit; lists every key that has no place.
    """
    config = torchvision_config(architecture, len(state.get("fc.bias", ())) or 1000)
    return mapping.from_torch(state, shapes(config, 0), torchvision.TABLE), config


def write(
    workdir: pathlib.Path, config: ml_collections.ConfigDict, variables: PyTree, step: int
) -> None:
    """Write a checkpoint that holds a network and no optimizer.

    Raises:
      ValueError: the folder has checkpoints already, or cannot be written.
    """
    folder = workdir.absolute() / trained.FOLDER
    if folder.exists() and any(folder.iterdir()):
        raise Refusal(f"{folder} has checkpoints already; give another --workdir")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Refusal(f"{folder} cannot be written: {error.strerror}") from error
    extra = dict(variables)
    checkpoints = Checkpoints(folder, keep=1)
    checkpoints.save(
        step, {"params": extra.pop("params"), "extra": extra}, config.to_dict(), window=[]
    )
    checkpoints.close()


def main(argv: list[str]) -> int:
    """Import the file of the command line."""
    logging.set_verbosity(logging.ERROR)
    try:
        if argv[1:]:
            raise Refusal(f"unknown argument {argv[1]!r}; --help says which there are")
        given = flags.FLAGS
        if not given.file:
            raise Refusal("give --file=FILE.pth; --help says more")
        workdir = pathlib.Path(given.workdir or pathlib.Path(given.file).with_suffix(""))
        state, epoch = state_of(files.read_pth(given.file))
        if given.torchvision:
            variables, config = torchvision_variables(state, given.torchvision)
        else:
            config = cli.config()[0].copy_and_resolve_references()
            variables, whole = sie_variables(state, config)
            if not whole:
                config.method = None
        write(workdir, config, variables, epoch)
    except ValueError as error:
        return cli.refuse(str(error))
    count = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
    print(f"{len(state)} arrays, {count:,} parameters, all placed: {workdir}")
    return 0


if __name__ == "__main__":
    flags.DEFINE_string("file", None, "The file of torch.")
    flags.DEFINE_string("torchvision", None, "The torchvision ResNet that it is of.")
    flags.DEFINE_string("workdir", None, "Folder of the run to be made.")
    app.run(main, flags_parser=cli.parse)
