"""The frozen evaluations of one checkpoint: features computed once, against computed in every step.

Three tasks x three parts, heads and network (ResNet-18, full width) as published, 300 epochs of the
embedded data at 64 pixels. The published protocol is nine runs, as the reference has it. A step of
each is timed and multiplied by the number of steps; features, and one evaluation at the end, are
timed whole.
"""

from __future__ import annotations

import pathlib
import tempfile
import time
from typing import Any

import jax
import ml_collections

from jaxequi import experiment
from jaxequi.methods import linear
from jaxequi.train import drawing, evaluate, programs
from jaxequi.train import mesh as meshes
from jaxequi.train.checkpoint import Checkpoints
from jaxequi.train.job import Job
from jaxequi.train.workdir import CHECKPOINTS

EPOCHS = 300
TASKS = ("classification", "rotation", "color")


def run(steps: int = 5) -> dict[str, Any]:
    """Measure both protocols on a fresh network; seconds."""
    from configs import evals, sie

    config = sie.get_config("sie")
    with config.unlocked():
        config.backbone = {"name": "resnet", "architecture": "resnet18"}
        config.method.equi, config.method.projector = 256, "512-512-512"
        config.train.source.image_size = config.val.source.image_size = 64
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = _checkpoint(config, pathlib.Path(folder) / "run")

        def job(words: str, **fields: Any) -> Job:
            config = evals.get_config(words)
            config.checkpoint, config.total_epochs = str(checkpoint), EPOCHS
            config.evals = {"heads": {}}
            config.update(fields)
            return experiment.build(config)

        clean = _time(job("sie_all"), steps, count_input=True)
        runs = {
            f"{task}-{part}": _time(job(f"sie_{task},published", parts=(part,)), steps, False)
            for task in TASKS
            for part in linear.PARTS
        }
    published = sum(one["total"] for one in runs.values())
    return {
        "epochs": EPOCHS,
        "clean": clean,
        "published": {"total": published, **runs},
        "times_faster": published / clean["total"],
    }


def _checkpoint(config: ml_collections.ConfigDict, folder: pathlib.Path) -> pathlib.Path:
    """A checkpoint of a network as it is drawn."""
    job = experiment.build(config)
    with job.batches(0, 1) as batches:
        batch = job.augment(jax.random.key(0), next(batches))
    params, extra = drawing.draw(lambda key: job.method.init(key, batch), jax.random.key(0))
    checkpoints = Checkpoints(folder.absolute() / CHECKPOINTS)
    checkpoints.save(0, {"params": params, "extra": extra}, job.config, window=[])
    checkpoints.close()
    return folder


def _time(job: Job, steps: int, count_input: bool) -> dict[str, float]:
    """Time what comes before the first step, the steps, and the evaluation at the end.

    Features are computed before the first step (of the training set) and in the evaluation, whose
    time holds its compilation too. Without `count_input` the batches are ready when a step begins:
    the images of the embedded data, once rendered, come from memory.
    """
    began = time.perf_counter()
    with job.batches(0, steps + 1) as batches:
        host = [next(batches)]
        before = time.perf_counter() - began
        began = time.perf_counter()
        host += list(batches)
        reading = (time.perf_counter() - began) / steps if count_input else 0.0
    compiled = programs.lower_job(job).compiled()
    state = compiled.initialise()
    seconds = []
    for batch in host:
        placed = meshes.to_global(job.mesh, batch, job.batch_size)
        began = time.perf_counter()
        state, _ = compiled.train_step(state, placed)
        jax.block_until_ready(state)
        seconds.append(time.perf_counter() - began)
    began = time.perf_counter()
    evaluate.run_evaluations(job, compiled, state)
    after = time.perf_counter() - began
    step = reading + min(seconds)
    return {
        "before": before,
        "step": step,
        "evaluation": after,
        "total": before + step * job.total_steps + after,
    }
