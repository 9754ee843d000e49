"""Give the tensors of one checkpoint the norms of another's (NormRescale).

python -m jaxequi.interop.norm_rescale --norms=sgd.pth.tar --weights=lars.pth.tar --output=out.pth

  --norms FILE           checkpoint whose norms are taken (A; trained by SGD)
  --weights FILE         checkpoint whose directions are kept (B; trained by LARS)
  --output FILE          where {"model": ...} goes
  --skip_running_stats   leave running means and variances as they are in B
  --keep_zeros           a tensor of zeros stays as it is; it becomes NaN otherwise, as published

Huang et al., ECCV 2022; megvii-research/revisitAIRL, `norm_rescale.py` (whose variable B is never
bound). Needs torch.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from absl import flags

from jaxequi import cli
from jaxequi.errors import Refusal
from jaxequi.interop import files

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
    a, b = (files.state_dict(files.read_pth(file))[0] for file in (_NORMS.value, _WEIGHTS.value))
    model = rescale(a, b, _SKIP_RUNNING_STATS.value, _KEEP_ZEROS.value)
    files.write_pth(_OUTPUT.value, {"model": model})
    print(f"{_OUTPUT.value}: {len(model)} arrays")
    return 0


if __name__ == "__main__":
    cli.run(main)
