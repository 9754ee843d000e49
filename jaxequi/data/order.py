"""Which examples form global batch t: pure functions of (seed, step).

There is no iterator state. A run that resumes at step t asks for the rows of step t, and a job of
any number of hosts asks the same question and reads its own positions of the answer.
"""

from __future__ import annotations

import functools

import numpy as np

from jaxequi.errors import Refusal

PADDING = -1  # the row that stands for "no example" in the last batch of `once`


@functools.lru_cache(maxsize=4)
def _permutation(seed: int, epoch: int, n: int) -> np.ndarray:
    """Return the shuffled rows of one epoch, i64[n]; a few are kept, as steps share them."""
    rows = np.random.default_rng((seed, epoch)).permutation(n)
    rows.flags.writeable = False
    return rows


def _check(batch_size: int, n: int) -> None:
    if batch_size < 1:
        raise Refusal(f"batch_size is {batch_size}; it must be at least 1.")
    if n < 1:
        raise Refusal("the data set is empty.")


def steps_per_epoch(batch_size: int, n: int) -> int:
    """Count the whole batches in one pass over `n` examples.

    Raises:
      ValueError: the data set does not fill one batch.
    """
    _check(batch_size, n)
    if n < batch_size:
        raise Refusal(
            f"batch_size {batch_size} is more than the {n} examples of the data set: no batch "
            "would be whole. Lower batch_size, or order the examples as an endless stream."
        )
    return n // batch_size


def epochs(seed: int, step: int, batch_size: int, n: int) -> np.ndarray:
    """Return the rows of batch `step`, i64[batch_size], in passes with a fresh shuffle each.

    The examples that do not fill the last batch of a pass are left out of it; they are other ones
    in every pass.
    """
    epoch, within = divmod(step, steps_per_epoch(batch_size, n))
    return _permutation(seed, epoch, n)[within * batch_size :][:batch_size]


def stream(seed: int, step: int, batch_size: int, n: int) -> np.ndarray:
    """Return the rows of batch `step`, i64[batch_size], of one endless sequence of shuffles.

    No example is left out: a batch may hold the end of one pass and the start of the next, so
    one example can be twice in it. The data set may be smaller than a batch.
    """
    _check(batch_size, n)
    place = step * batch_size + np.arange(batch_size, dtype=np.int64)
    epoch, within = np.divmod(place, n)
    rows = np.empty(batch_size, np.int64)
    for one in np.unique(epoch):
        rows[epoch == one] = _permutation(seed, int(one), n)[within[epoch == one]]
    return rows


def once_steps(batch_size: int, n: int) -> int:
    """Count the batches of `once`, the padded one included."""
    _check(batch_size, n)
    return -(-n // batch_size)


def once(step: int, batch_size: int, n: int) -> np.ndarray:
    """Return the rows of batch `step`, i64[batch_size], of one pass in storage order.

    Every example is in exactly one batch. The last batch is filled up with `PADDING`, for which
    the loader writes `mask` False.

    Raises:
      ValueError: the pass has no batch `step`.
    """
    if not 0 <= step < once_steps(batch_size, n):
        raise Refusal(
            f"a pass over {n} examples in batches of {batch_size} has "
            f"{once_steps(batch_size, n)} of them; there is no batch {step}."
        )
    rows = step * batch_size + np.arange(batch_size, dtype=np.int64)
    return np.where(rows < n, rows, PADDING)
