"""Measure, and print JSON.

python -m jaxequi.bench --config=configs/sie.py [--config.FIELD=VALUE ...] [--steps=20]
    the train step of a config: compile time, step time, input time, memory, FLOPs, bytes
python -m jaxequi.bench SUITE
    comparisons side by side in one run; each file of jaxequi/bench is a suite, with `run()`
"""

from __future__ import annotations

import json
import sys

from absl import app, flags
from ml_collections import config_flags

from jaxequi import experiment, names
from jaxequi.bench import step
from jaxequi.main import parse, refuse

_CONFIG = config_flags.DEFINE_config_file("config", None, "Config file, as for jaxequi.main.")
_STEPS = flags.DEFINE_integer("steps", 20, "Steps to time.", lower_bound=1)


def main(argv: list[str]) -> int:
    """Run the suites named, or time the step of a config."""
    try:
        if argv[1:]:
            suites = {name: names.find("bench", name, "run") for name in argv[1:]}
            print(json.dumps({name: run() for name, run in suites.items()}, indent=2))
            return 0
        if _CONFIG.value is None:
            return refuse("give --config=configs/FILE.py[:words] or the name of a suite")
        overridden = config_flags.get_override_values(flags.FLAGS["config"])
        print(json.dumps(step.measure(experiment.build(_CONFIG.value, overridden), _STEPS.value)))
        return 0
    except ValueError as error:
        return refuse(str(error))


if __name__ == "__main__":
    app.run(main, flags_parser=parse)
