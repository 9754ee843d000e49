"""NormRescale, one network with another's norms: python -m jaxequi.interop.norm_rescale

    --norms=sgd.pth.tar --weights=lars.pth.tar --output=out.pth   # of revisitAIRL; with torch
    --norms=runs/SGD --weights=runs/LARS --output=runs/OUT        # two runs

  --norms FILE           checkpoint or run whose norms are taken (A; trained by SGD)
  --weights FILE         checkpoint or run whose directions are kept (B; trained by LARS)
  --output FILE          where {"model": ...} of the online encoder goes; of runs a run like B, of
                         which the target network and the queue stay as they are
  --skip_running_stats   leave running means and variances as they are in B
  --keep_zeros           a tensor of zeros stays as it is; it becomes NaN otherwise, as published

Huang et al., ECCV 2022; megvii-research/revisitAIRL, `norm_rescale.py` (whose variable B is never
bound).
"""

from __future__ import annotations

import pathlib
from collections.abc import Mapping

import numpy as np
from absl import flags
from flax import traverse_util

from jaxequi import cli
from jaxequi.errors import Refusal
from jaxequi.interop import files, networks
from jaxequi.types import OWN, PyTree

FLAGS = flags.FlagValues()
_NORMS = flags.DEFINE_string("norms", None, "Checkpoint whose norms are taken.", FLAGS)
_WEIGHTS = flags.DEFINE_string("weights", None, "Checkpoint whose directions are kept.", FLAGS)
_OUTPUT = flags.DEFINE_string("output", None, "File to write.", FLAGS)
_SKIP_RUNNING_STATS = flags.DEFINE_bool(
    "skip_running_stats", False, "Leave running statistics alone.", FLAGS
)
_KEEP_ZEROS = flags.DEFINE_bool("keep_zeros", False, "Leave tensors of zeros alone.", FLAGS)


def rescale(
    norms: Mapping[str, np.ndarray],
    weights: Mapping[str, np.ndarray],
    skip_running_stats: bool = False,
    keep_zeros: bool = False,
) -> dict[str, np.ndarray]:
    """Scale each tensor of the online encoder to the norm that it has elsewhere: B |A| / |B|.

    Args:
      norms, weights: A and B, under torch's names. What is not of the online encoder, and counters,
        are left out.
      skip_running_stats: leave BatchNorm's running statistics as they are in B.
      keep_zeros: leave a tensor of zeros as it is; it becomes NaN otherwise.

    Raises:
      ValueError: a tensor that only one of them has, or no online encoder.
    """
    chosen = {
        name: array
        for name, array in weights.items()
        if "online" in name and np.issubdtype(array.dtype, np.floating)
    }
    missing = [name for name in chosen if name not in norms]
    if missing or not chosen:
        raise Refusal(
            f"{len(missing)} of {len(chosen)} tensors of an online encoder are not in the "
            f"checkpoint whose norms are asked for: {', '.join(missing[:4]) or 'there is none'}"
        )
    rescaled = {}
    for name, array in chosen.items():
        size = np.linalg.norm(array)
        if (skip_running_stats and "running_" in name) or (keep_zeros and not size):
            rescaled[name] = array
        else:
            with np.errstate(invalid="ignore", divide="ignore"):
                rescaled[name] = array * (np.linalg.norm(norms[name]) / size)
    return rescaled


@cli.program
def main(argv: list[str]) -> int:
    """Rescale the file of the command line."""
    cli.arguments(argv, FLAGS, [], __doc__)
    if not (_NORMS.value and _WEIGHTS.value and _OUTPUT.value):
        raise Refusal("give --norms, --weights and --output; --help says more")
    both = _NORMS.value, _WEIGHTS.value
    options = _SKIP_RUNNING_STATS.value, _KEEP_ZEROS.value
    runs = [pathlib.Path(one).is_dir() for one in both]
    if all(runs):
        count = _rescale_run(*both, _OUTPUT.value, *options)
    elif any(runs):
        raise Refusal(
            f"{both[0]} and {both[1]}: one is a run and one a file; make a run of the file with "
            "jaxequi.interop.import_torch"
        )
    else:
        a, b = (files.state_dict(files.read_pth(file))[0] for file in both)
        model = rescale(a, b, *options)
        files.write_pth(_OUTPUT.value, {"model": model})
        count = len(model)
    print(f"{_OUTPUT.value}: {count} arrays")
    return 0


def _rescale_run(norms: str, weights: str, output: str, *options: bool) -> int:
    """Write the run `weights` with the norms of the run `norms`; returns how many arrays moved."""
    _, _, other = networks.load(norms)
    step, config, variables = networks.load(weights)
    b = _online(variables)
    rescaled = rescale(_online(other), b, *options)
    leaves = traverse_util.flatten_dict(variables, sep="/")
    for name, array in rescaled.items():
        path = name.removeprefix("online/").replace("running_stats/", "batch_stats/", 1)
        leaves[path] = np.asarray(array, leaves[path].dtype)
    networks.save(output, config, traverse_util.unflatten_dict(leaves, sep="/"), step)
    return len(rescaled)


def _online(variables: PyTree) -> dict[str, np.ndarray]:
    """Name the arrays of a run's own network as `rescale` reads them, without its online heads."""
    leaves = traverse_util.flatten_dict(variables, sep="/")
    return {
        f"online/{path.replace('batch_stats/', 'running_stats/', 1)}": leaf
        for path, leaf in leaves.items()
        if not path.startswith((f"{OWN}/", "params/online/"))
    }


if __name__ == "__main__":
    cli.run(main)
