"""Write a checkpoint of ours as a file of torch.

python -m jaxequi.interop.export_torch RUN --file=model.pth [--step=N] [--epoch=N]
python -m jaxequi.interop.export_torch RUN --file=final_weights.pth --backbone

The first file resumes and evaluates with facebookresearch/SIE: from the epoch given, by default 0,
with a fresh optimizer, since the network alone is carried over. The second is the backbone as its
evaluations want it: they look for "final_weights" in the name. A network of torchvision is written
as its plain state dict. Needs torch: pip install -e ".[torch]".
"""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from absl import app, flags, logging

from jaxequi import cli, trained
from jaxequi.errors import Refusal
from jaxequi.interop import files, mapping
from jaxequi.interop.tables import resnet, sie, torchvision
from jaxequi.names import unknown
from jaxequi.train import checkpoint
from jaxequi.types import PyTree

_TABLES = {"resnet": sie.TABLE, "torchvision_resnet": torchvision.TABLE}


def state_dict(config: Mapping[str, Any], variables: PyTree) -> dict[str, np.ndarray]:
    """Name a whole network's variables {"params": ..., **extra} as torch does.

    Raises:
      ValueError: a backbone that torch does not have.
    """
    name = config["backbone"]["name"]
    if name not in _TABLES:
        raise unknown("backbone with names in torch", name, _TABLES)
    return mapping.to_torch(variables, _TABLES[name])


def backbone_state_dict(variables: PyTree) -> dict[str, np.ndarray]:
    """Name the variables of a whole network's backbone alone, as a ResNet of torch."""
    alone = {name: tree["backbone"] for name, tree in variables.items()}
    return mapping.to_torch(alone, resnet.TABLE)


def sie_checkpoint(
    state: Mapping[str, np.ndarray], config: Mapping[str, Any], epoch: int
) -> dict[str, Any]:
    """A `model.pth` of facebookresearch/SIE: `model` under DDP's prefix, and a fresh Adam."""
    parameters = [k for k in state if k.rpartition(".")[2] in ("weight", "bias")]
    adam = {
        "lr": config["optimizer"]["learning_rate"],
        "betas": (0.9, 0.999),
        "eps": 1e-8,
        "weight_decay": config["optimizer"]["weight_decay"],
        "amsgrad": False,
        "maximize": False,
        "foreach": None,
        "capturable": False,
        "differentiable": False,
        "fused": None,
        "params": list(range(len(parameters))),
    }
    return {
        "epoch": epoch,
        "model": {f"module.{name}": array for name, array in state.items()},
        "optimizer": {"state": {}, "param_groups": [adam]},
    }


def main(argv: list[str]) -> int:
    """Export the run of the command line."""
    logging.set_verbosity(logging.ERROR)
    try:
        given = flags.FLAGS
        if len(argv) != 2 or not given.file:
            raise Refusal("give the folder of a run and --file=FILE.pth; --help says more")
        run, file = pathlib.Path(argv[1]), pathlib.Path(given.file)
        step, config, params, extra = checkpoint.read_network(
            run.absolute() / trained.FOLDER, given.step
        )
        variables = {"params": params, **extra}
        if given.backbone or config["method"] is None:
            written: dict[str, Any] = backbone_state_dict(variables)
        elif config["backbone"]["name"] == "resnet":
            state = state_dict(config, variables)
            written = sie_checkpoint(state, config, given.epoch)
        else:
            written = state_dict(config, variables)
        files.write_pth(file, written)
    except ValueError as error:
        return cli.refuse(str(error))
    print(f"{run}, step {step}: {file}")
    return 0


if __name__ == "__main__":
    flags.DEFINE_string("file", None, "The file to be written.")
    flags.DEFINE_integer("step", None, "Which checkpoint; the newest by default.")
    flags.DEFINE_integer("epoch", 0, "The epoch at which their training would go on.")
    flags.DEFINE_bool("backbone", False, "Write the backbone alone.")
    app.run(main, flags_parser=cli.parse)
