"""Checkpoints of a run: written behind the training, the latest N and the best kept.

They are written with `orbax.checkpoint.CheckpointManager` and not with orbax's `v1`, which its
package still keeps under `experimental` and which is built on this same manager; once
orbax-checkpoint 1.0 makes `v1` its top level, this file moves, and tests/train/test_saved_run.py
says whether the runs of before can still be read. Orbax is imported where it is used: no `--help`
waits for it.
"""

from __future__ import annotations

import contextlib
import pathlib
from typing import Any

import jax
import numpy as np
from etils import epath

from jaxequi.errors import Refusal
from jaxequi.train.state import TrainState
from jaxequi.types import PyTree

Window = list[dict[str, float]]


def check(keep: int, best_mode: str) -> None:
    """Raise `ValueError` unless `Checkpoints` can keep so many, the best by that mode."""
    if keep < 1:
        raise Refusal(f"keep_checkpoints={keep}: at least 1 is needed to resume from")
    if best_mode not in ("max", "min"):
        raise Refusal(f"best_mode={best_mode!r}: use 'max' or 'min'")


def size(state: PyTree) -> int:
    """Bytes of a state, by its shapes."""
    keys = jax.tree.map(
        lambda leaf: (
            jax.eval_shape(jax.random.key_data, leaf)
            if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
            else leaf
        ),
        state,
    )
    return sum(leaf.size * np.dtype(leaf.dtype).itemsize for leaf in jax.tree.leaves(keys))


def _one_replica(leaf: Any) -> Any:
    """Of an array that every device of this host holds whole, the one on the first of them.

    Orbax would divide the writing among the devices, by a program compiled for each shape; they
    write to one disk all the same.
    """
    if isinstance(leaf, jax.Array) and leaf.is_fully_replicated and leaf.is_fully_addressable:
        return leaf.addressable_data(0)
    return leaf


class Checkpoints:
    """The checkpoints below one directory.

    A checkpoint holds `state` (everything a run is), `config` (the resolved config) and `window`
    (metrics of the steps not yet logged, so that a resumed run logs the same means). The position
    of the input is not saved: the batch of a step is a function of (seed, step). A checkpoint is
    complete or not there: it is written beside and renamed.
    """

    def __init__(
        self,
        directory: str | pathlib.Path | epath.Path,
        *,
        keep: int = 2,
        best: str | None = None,
        best_mode: str = "max",
    ):
        """Open a directory.

        Args:
          keep: how many of the newest to keep.
          best: metric by which the best one is kept beside the newest; None keeps no best.
          best_mode: "max" or "min".

        Raises:
          ValueError: see `check`.
        """
        import orbax.checkpoint as ocp
        from orbax.checkpoint import checkpoint_managers

        check(keep, best_mode)
        self.directory = epath.Path(directory)
        policies: list[Any] = [checkpoint_managers.LatestN(keep)]
        options: dict[str, Any] = {}
        if best:

            def metric(metrics: PyTree) -> float:
                return metrics[best]

            # `max_to_keep` with `best_fn` would drop the newest: hence two policies. `best_fn` is
            # needed all the same, for `best_step`.
            policies.append(
                checkpoint_managers.BestN(
                    get_metric_fn=metric,
                    n=1,
                    reverse=best_mode == "min",
                    keep_checkpoints_without_metrics=False,
                )
            )
            options = {"best_fn": metric, "best_mode": best_mode}
        self.best = best
        self.manager = ocp.CheckpointManager(
            self.directory,
            options=ocp.CheckpointManagerOptions(
                preservation_policy=checkpoint_managers.AnyPreservationPolicy(policies), **options
            ),
        )

    def latest_step(self) -> int | None:
        """Step of the newest complete checkpoint."""
        return self.manager.latest_step()

    def save(
        self,
        step: int,
        state: PyTree,
        config: dict[str, Any],
        window: Window,
        metrics: dict[str, float] | None = None,
    ) -> None:
        """Start to write a checkpoint of a `TrainState`; the state may be donated at once.

        A dict of `params` and `extra` alone is a network without a run: read by `read_network`.
        """
        import orbax.checkpoint as ocp

        if step in self.manager.all_steps():
            return
        ranked = metrics if self.best and metrics and self.best in metrics else None
        self.manager.save(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(jax.tree.map(_one_replica, state)),
                config=ocp.args.JsonSave(config),
                window=ocp.args.JsonSave({"steps": window}),
            ),
            metrics=ranked,
        )

    def restore(self, step: int, shapes: PyTree, shardings: PyTree) -> tuple[TrainState, Window]:
        """Read a checkpoint onto any mesh.

        Args:
          shapes: `jax.eval_shape` of the state.
          shardings: where its leaves go, a tree like it.

        Raises:
          ValueError: the checkpoint is damaged or holds another state.
        """
        import orbax.checkpoint as ocp

        target = jax.tree.map(
            lambda s, place: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=place),
            shapes,
            shardings,
        )
        try:
            saved = self.manager.restore(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardRestore(target), window=ocp.args.JsonRestore()
                ),
            )
        except Exception as error:  # tensorstore, json and orbax each raise their own kinds
            raise Refusal(
                f"checkpoint {self.directory / str(step)} cannot be read: "
                f"{type(error).__name__}: {str(error).splitlines()[0]}\n"
                "It is damaged, or of another model. Remove that folder to go on from the "
                "checkpoint before it, or give another --workdir."
            ) from error
        return saved["state"], saved["window"]["steps"]

    def wait(self) -> None:
        """Wait until everything saved is on disk."""
        self.manager.wait_until_finished()

    def close(self) -> None:
        """Wait, then let go of the directory."""
        self.manager.wait_until_finished()
        self.manager.close()


def read_network(
    directory: str | pathlib.Path | epath.Path, step: int | None = None
) -> tuple[int, dict[str, Any], PyTree, PyTree]:
    """Read of a checkpoint what makes its network, whatever wrote it and on whatever mesh.

    Args:
      directory: that of `Checkpoints`.
      step: which one; the newest by default.

    Returns:
      The step, the config, and `params` and `extra` as numpy arrays.

    Raises:
      ValueError: there is no such checkpoint, or it is damaged.
    """
    import orbax.checkpoint as ocp

    directory = epath.Path(directory)
    if not directory.is_dir():
        raise Refusal(f"there is no folder {directory}; give the folder of a run")
    handlers = {
        "state": ocp.PyTreeCheckpointHandler(),
        **{name: ocp.JsonCheckpointHandler() for name in ("config", "window")},
    }
    with contextlib.closing(ocp.CheckpointManager(directory, item_handlers=handlers)) as manager:
        steps = manager.all_steps()
        chosen = manager.latest_step() if step is None else step
        if chosen not in steps:
            raise Refusal(f"no checkpoint of step {step} in {directory}; there is {steps}")
        try:
            saved = manager.item_metadata(chosen)["state"].tree
            wanted = {name: saved[name] for name in ("params", "extra")}
            arrays = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), wanted)
            restored = manager.restore(
                chosen,
                args=ocp.args.Composite(
                    state=ocp.args.PyTreeRestore(wanted, restore_args=arrays, partial_restore=True),
                    config=ocp.args.JsonRestore(),
                ),
            )
        except Exception as error:  # tensorstore, json and orbax each raise their own kinds
            raise Refusal(
                f"checkpoint {directory / str(chosen)} cannot be read: {type(error).__name__}: "
                f"{str(error).splitlines()[0]}\nIt is damaged; give another step."
            ) from error
    state = restored["state"]
    return chosen, restored["config"], state["params"], state["extra"]
