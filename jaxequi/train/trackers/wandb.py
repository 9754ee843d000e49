"""Weights & Biases; `WANDB_MODE=offline` needs no net, `wandb sync` brings it there later.

Project and the like are those of its environment (`WANDB_PROJECT`, by default jaxequi).
"""

from __future__ import annotations

import os
import pathlib
from collections.abc import Mapping
from typing import Any

import wandb


class Wandb:
    """One run of Weights & Biases."""

    def __init__(self, workdir: pathlib.Path, config: Mapping[str, Any], known: str | None):
        self.run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "jaxequi"),
            id=known,
            resume="allow",
            name=workdir.absolute().name,
            dir=workdir,
            config=dict(config),
            settings=wandb.Settings(console="off", silent=True),
        )
        self.id = str(self.run.id)

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Log the metrics of a step; those that it has from before an interruption are the same."""
        if step >= self.run.step:
            self.run.log(dict(metrics), step=step)

    def close(self, finished: bool) -> None:
        """Send what is left; a run that is to go on counts as failed until then."""
        self.run.finish(exit_code=0 if finished else 1)


make = Wandb
