"""MLflow, where `MLFLOW_TRACKING_URI` says; by default the file `mlflow.db`, without a net.

The experiment is `MLFLOW_EXPERIMENT_NAME`, by default jaxequi; the config is the run's parameters.
"""

from __future__ import annotations

import os
import pathlib
import time
from collections.abc import Iterator, Mapping
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Metric, Param

AT_ONCE = 100  # parameters of one call
LONGEST = 6000  # characters of one


class Mlflow:
    """One run of MLflow."""

    def __init__(self, workdir: pathlib.Path, config: Mapping[str, Any], known: str | None):
        self.client = MlflowClient()
        if known is not None:
            self.client.update_run(known, status="RUNNING")
            self.id = known
            return
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "jaxequi")
        found = self.client.get_experiment_by_name(name)
        experiment = found.experiment_id if found else self.client.create_experiment(name)
        made = self.client.create_run(experiment, run_name=workdir.absolute().name)
        self.id = str(made.info.run_id)
        params = [Param(name, str(value)[:LONGEST]) for name, value in flat(config)]
        for start in range(0, len(params), AT_ONCE):
            self.client.log_batch(self.id, params=params[start : start + AT_ONCE])

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Log the metrics of a step."""
        now = int(time.time() * 1000)
        values = [Metric(name, value, now, step) for name, value in metrics.items()]
        self.client.log_batch(self.id, metrics=values)

    def close(self, finished: bool) -> None:
        """Say how the run stands."""
        self.client.set_terminated(self.id, "FINISHED" if finished else "KILLED")


make = Mlflow


def flat(config: Mapping[str, Any], at: str = "") -> Iterator[tuple[str, Any]]:
    """Name each value of nested dicts by its path, with dots."""
    for name, value in config.items():
        if isinstance(value, Mapping) and value:
            yield from flat(value, f"{at}{name}.")
        else:
            yield f"{at}{name}", value
