"""Train or evaluate what a config says: python -m jaxequi.main --config=configs/sie.py:vicreg,smoke

The word after the colon names a variant, further words change its size (`smoke`: seconds, `paper`:
the published experiment). Any field can be set: --config.batch_size=128, and any argument of what
a part names, listed or not: --config.backbone.name=octic_vit --config.backbone.group=d1.

  --workdir DIR   where everything goes (default: a new folder under runs/); the same command with
                  the same --workdir goes on where an interrupted run stopped

Where things live: configs/ the experiments; jaxequi/methods/ what is learned, jaxequi/objectives/
the losses, jaxequi/evals/ the metrics, jaxequi/train/ the loop; jaxequi/README.md is the map.

Exit codes: 0 finished, 1 failed (a metric was not finite, the disk was full), 2 bad input (nothing
was done), 85 interrupted and saved, or another process of the run was lost.
"""

from __future__ import annotations

import datetime
import pathlib
import re
from collections.abc import Iterable

import jax
import ml_collections
from absl import flags

from jaxequi import cli, experiment
from jaxequi.errors import Refusal
from jaxequi.experiment import before
from jaxequi.train import log, loop, mesh, peers
from jaxequi.train import workdir as folders
from jaxequi.train.job import Job

PROBED_IMAGES = 16  # of the probe in a report; `python -m jaxequi.probe` takes more

FLAGS = flags.FlagValues()
cli.define_config(FLAGS)
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Folder of the run; default a new one in runs/.", flag_values=FLAGS
)


def new_workdir(given: str) -> pathlib.Path:
    """Name a folder after the config and the time: `runs/sie-vicreg-smoke-20260131-235959`."""
    if jax.process_count() > 1:
        raise Refusal("a run of several processes needs --workdir, the same for all of them")
    path, _, words = given.partition(":")
    name = re.sub(r"[^A-Za-z0-9_]+", "-", f"{pathlib.Path(path).stem} {words}").strip("-")
    return pathlib.Path("runs") / f"{name}-{datetime.datetime.now():%Y%m%d-%H%M%S}"


@cli.program
def main(argv: list[str]) -> int:
    """Build the config's job and run it."""
    cli.arguments(argv, FLAGS, [], __doc__)
    config, overridden, given = cli.config(FLAGS)
    mesh.start_distributed()
    workdir = pathlib.Path(_WORKDIR.value) if _WORKDIR.value else new_workdir(given)
    with peers.watched(loop.INTERRUPTED):  # another process may be lost while the run is built, too
        return train(config, overridden, workdir)


def train(
    config: ml_collections.ConfigDict, overridden: Iterable[str], workdir: pathlib.Path
) -> int:
    """Train what a config describes, and before it the runs that it asks for; the exit code."""
    runs = before.plan(config, overridden, workdir)
    if len(runs) > 1:
        before.rehearse(runs)
    for run in runs:
        code = _run(run)
        if code != loop.FINISHED:
            if run is not runs[-1]:
                print(f"({run.folder.name} is one of the runs in --workdir={workdir})")
            return code
    return loop.FINISHED


def _run(run: before.Planned) -> int:
    """Train a run, and write its report."""
    job = experiment.build(run.config, run.overridden)
    cli.use_compilation_cache()
    try:
        code = loop.run(job, run.folder)
    except log.NonFiniteError as error:
        return cli.refuse(f"{error}. Nothing after the last checkpoint is kept.", code=cli.FAILED)
    if code == loop.FINISHED and jax.process_index() == 0:
        with folders.writing(run.folder):
            _report(job, run.folder)
    return code


def _report(job: Job, workdir: pathlib.Path) -> None:
    """Write the report; of a network over a group it holds what the probe measures."""
    from jaxequi.experiment import trained
    from jaxequi.runs import probing, report  # matplotlib: the first step need not wait for it

    if job.preflight and jax.process_count() == 1:  # it predicted what is now measured
        print(probing.of_run(trained.load(workdir), PROBED_IMAGES))
    else:
        print(f"report: {report.write(workdir)}")


if __name__ == "__main__":
    cli.run(main)
