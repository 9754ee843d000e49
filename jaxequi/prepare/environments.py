"""Keep EqInv's environments for other runs: `python -m jaxequi.prepare.environments RUN OUT.npz`.

A run makes its own environments before its first step. With
`--config.method.environments_from=OUT.npz` other runs take these in place of it, if they start with
the same network and learn from the same data; else they are refused. The file is `table` int8[C, N]
with the digests `start` and `data` (`objectives.environments`).
"""

from __future__ import annotations

import pathlib

import numpy as np
from absl import flags

from jaxequi import cli
from jaxequi.errors import Refusal
from jaxequi.objectives import environments
from jaxequi.train import checkpoint
from jaxequi.train.workdir import CHECKPOINTS
from jaxequi.types import OWN

FLAGS = flags.FlagValues()


def table(run: pathlib.Path) -> environments.Saved:
    """The environments in the newest checkpoint of a run.

    Raises:
      ValueError: no such run, or one of another method.
    """
    _, config, _, extra = checkpoint.read_network(run.absolute() / CHECKPOINTS)
    own = extra.get(OWN, {})
    if "environments" not in own:
        raise Refusal(f"{run} is no run of the method eqinv, which has environments")
    method = config["method"]
    return environments.Saved(
        np.asarray(own["environments"]), method["start_digest"] or "", method["data_digest"]
    )


@cli.program
def main(argv: list[str]) -> int:
    """Run the program; return its exit code."""
    run, out = map(pathlib.Path, cli.arguments(argv, FLAGS, ["RUN", "OUT.npz"], __doc__))
    saved = table(run)
    if out.suffix != ".npz":
        raise Refusal(f"{out}: the file's name must end with .npz")
    try:
        environments.save(out, saved)
    except OSError as error:
        raise Refusal(f"{out} cannot be written: {error.strerror}") from error
    print(f"environments of {saved.table.shape[1]} examples for {len(saved.table)} classes: {out}")
    return 0


if __name__ == "__main__":
    cli.run(main)
