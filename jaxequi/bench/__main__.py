"""Measure, and print JSON.

python -m jaxequi.bench --config=configs/sie.py [--config.FIELD=VALUE ...] [--steps=20]
    the train step of a config: compile time, step time, input time, memory, FLOPs, bytes
python -m jaxequi.bench SUITE
    comparisons side by side in one run; each file of jaxequi/bench is a suite, with `run()`
"""

from __future__ import annotations

import json

from absl import flags

from jaxequi import cli, experiment, names
from jaxequi.bench import _step

FLAGS = flags.FlagValues()
cli.define_config(FLAGS)
_STEPS = flags.DEFINE_integer("steps", 20, "Steps to time.", lower_bound=1, flag_values=FLAGS)


@cli.program
def main(argv: list[str]) -> int:
    """Run the suites named, or time the step of a config."""
    asked = cli.arguments(argv, FLAGS, ["[SUITE...]"], __doc__)
    if asked:
        suites = {name: names.find("bench", name, "run") for name in asked}
        measured = {name: run() for name, run in suites.items()}
    else:
        config, overridden, _ = cli.config(FLAGS)
        measured = _step.measure(experiment.build(config, overridden), _STEPS.value)
    print(json.dumps(measured, indent=2))
    return 0


if __name__ == "__main__":
    cli.run(main)
