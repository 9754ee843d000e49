"""Where does a network break its symmetry? The prediction, the measurement, and images of both.

    python -m jaxequi.probe --config=configs/rotmnist.py:approximate27   # fresh weights
    python -m jaxequi.probe --run=runs/NAME                              # a trained network

Prints the static verdict and the measured error of every layer, and writes figures to --out; those
of a run go into its report. A trained classifier is also tested at 36 angles. The images are the
first of the validation set.
"""

from __future__ import annotations

import pathlib

from absl import flags

from jaxequi import cli, experiment
from jaxequi.experiment import trained
from jaxequi.groups import planar

FLAGS = flags.FlagValues()
cli.define_config(FLAGS)
_RUN = flags.DEFINE_string(
    "run", None, "Folder of a run; without it, fresh weights of --config.", flag_values=FLAGS
)
_GROUP = flags.DEFINE_string(
    "group", None, "Group; by default the network's own, or c4.", flag_values=FLAGS
)
_IMAGES = flags.DEFINE_integer(
    "images", 64, "Images to measure with.", lower_bound=1, flag_values=FLAGS
)
_OUT = flags.DEFINE_string(
    "out", None, "Folder for the figures; by default the run's, or probe/.", flag_values=FLAGS
)


@cli.program
def main(argv: list[str]) -> int:
    """Probe the network of a config or of a run."""
    cli.arguments(argv, FLAGS, [], __doc__)
    from jaxequi.runs import probing  # matplotlib, for which no --help waits

    cli.use_compilation_cache()
    group = planar.named(_GROUP.value) if _GROUP.value else None
    out = pathlib.Path(_OUT.value) if _OUT.value else None
    if _RUN.value:
        print(probing.of_run(trained.load(_RUN.value), _IMAGES.value, group, out))
    else:
        given, overridden, _ = cli.config(FLAGS)
        config = given.copy_and_resolve_references()
        experiment.follow_names(config, overridden)
        print(probing.of_config(config, _IMAGES.value, group, out or pathlib.Path("probe")))
    return 0


if __name__ == "__main__":
    cli.run(main)
